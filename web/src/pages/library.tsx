import { Button, Nav, NavItem, NavList, PageSection } from '@patternfly/react-core'
import { Link, useParams } from 'react-router'
import { t } from '../i18n'
import { Ago, Empty, Head, Labels, Shown, useThings } from '../ui/bits'
import { Sheet } from '../ui/sheet'

export const library = [['configs', 'Config'], ['secrets', 'Secret'], ['releases', 'Release'], ['networkpolicies', 'NetworkPolicy'], ['flowpolicies', 'FlowPolicy']] as const

// Library lists the kinds that fleets refer to. Their names are the API's own words, in any language.
export default function Library() {
  const { plural = 'configs' } = useParams()
  const kind = library.find(([p]) => p === plural)?.[1] ?? 'Config'
  const things = useThings(plural, kind)
  return (
    <>
      <Head title={t('nav.library')} aside={<Button component={(p) => <Link {...p} to={`/edit/${kind}`} />}>{t('edit.new', { kind })}</Button>}>
        <Nav variant="horizontal" aria-label={t('nav.library')}><NavList>{library.map(([p, k]) => <NavItem key={p} isActive={p === plural}><Link to={`/library/${p}`}>{k}</Link></NavItem>)}</NavList></Nav>
      </Head>
      <PageSection><Shown of={things}>{(l) => l.items.length === 0 ? <Empty title={t('kind.none')} /> : (
        <Sheet label={kind} head={[t('col.name'), t('col.tenant'), t('col.labels'), t('col.updated')]} rows={l.items.map((o) => [`${o.metadata.tenant}/${o.metadata.name}`, [
          <Link key="n" to={`/edit/${kind}/${o.metadata.tenant}/${o.metadata.name}`}>{o.metadata.name}</Link>, o.metadata.tenant, <Labels key="l" of={o.metadata.labels} />, <Ago key="u" time={o.metadata.updated} />,
        ]])} />
      )}</Shown></PageSection>
    </>
  )
}
