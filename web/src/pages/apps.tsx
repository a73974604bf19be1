import { Alert, Button, PageSection } from '@patternfly/react-core'
import { Link } from 'react-router'
import type { App } from '../api/client'
import { t } from '../i18n'
import { Ago, bytes, Empty, Head, Shown, useFound } from '../ui/bits'
import { Sheet } from '../ui/sheet'

export default function Apps() {
  const apps = useFound<App>({ kind: 'App', sort: 'name', limit: 500 })
  return (
    <>
      <Head title={t('nav.apps')} aside={<Button component={(p) => <Link {...p} to="/edit/App" />}>{t('act.new')}</Button>} />
      <PageSection><Shown of={apps}>{(a) => a.items.length === 0 ? <Empty title={t('app.none')} body={t('app.none.body')}><Button variant="secondary" component={(p) => <Link {...p} to="/edit/App" />}>{t('act.new')}</Button></Empty> : (
        <Sheet label={t('nav.apps')} head={[t('col.name'), t('col.tenant'), t('col.services'), t('col.images'), t('col.devices'), t('col.updated')]} rows={a.items.map(({ tenant, name, object: o }) => [`${tenant}/${name}`, [
          <Link key="n" to={`/edit/App/${tenant}/${name}`}>{name}</Link>, tenant, (o?.status?.services ?? []).join(', '),
          <span key="i">{(o?.status?.images ?? []).map((i) => `${i.repo} (${bytes(i.size)})`).join(', ')}{(o?.status?.warnings ?? []).map((w) => <Alert component="p" key={w} isInline isPlain variant="warning" title={w} />)}</span>,
          <Link key="d" to={`/devices?app=${name}`}>{t('col.devices')}</Link>, <Ago key="u" time={o?.metadata.updated} />,
        ]])} />
      )}</Shown></PageSection>
    </>
  )
}
