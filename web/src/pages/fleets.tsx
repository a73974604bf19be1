import { Button, PageSection, Progress, ProgressMeasureLocation, ProgressSize } from '@patternfly/react-core'
import { Link } from 'react-router'
import type { Fleet } from '../api/client'
import { t } from '../i18n'
import { Empty, Head, Labels, Shown, useFound } from '../ui/bits'
import { Sheet } from '../ui/sheet'

function Share({ n, of, label }: { n: number; of: number; label: string }) {
  return <Progress className="share" size={ProgressSize.sm} value={of ? (100 * n) / of : 0} label={t('fleet.of', { n, total: of })} valueText={t('fleet.of', { n, total: of })} measureLocation={ProgressMeasureLocation.outside} aria-label={label} variant={of > 0 && n === of ? 'success' : undefined} />
}

export default function Fleets() {
  const fleets = useFound<Fleet>({ kind: 'Fleet', sort: 'name', limit: 500 })
  return (
    <>
      <Head title={t('nav.fleets')} aside={<Button component={(p) => <Link {...p} to="/edit/Fleet" />}>{t('act.new')}</Button>} />
      <PageSection><Shown of={fleets}>{(f) => f.items.length === 0 ? <Empty title={t('fleet.none')} body={t('fleet.none.body')}><Button variant="secondary" component={(p) => <Link {...p} to="/edit/Fleet" />}>{t('act.new')}</Button></Empty> : (
        <Sheet label={t('nav.fleets')} head={[t('col.name'), t('col.tenant'), t('col.selector'), t('col.apps'), t('col.devices'), t('col.current'), t('col.running')]} rows={f.items.map(({ tenant, name, object: o }) => [`${tenant}/${name}`, [
          <Link key="n" to={`/edit/Fleet/${tenant}/${name}`}>{name}</Link>, tenant, <Labels key="l" of={o?.spec?.selector?.matchLabels} />, (o?.spec?.apps ?? []).join(', '), o?.status?.devices ?? 0,
          <Share key="c" n={o?.status?.current ?? 0} of={o?.status?.devices ?? 0} label={t('col.current')} />, <Share key="r" n={o?.status?.running ?? 0} of={o?.status?.devices ?? 0} label={t('col.running')} />,
        ]])} />
      )}</Shown></PageSection>
    </>
  )
}
