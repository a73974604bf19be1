import { Button, Card, CardBody, CardTitle, Grid, GridItem, PageSection } from '@patternfly/react-core'
import { useQuery } from '@tanstack/react-query'
import { Link } from 'react-router'
import { find, send, type Site } from '../api/client'
import { t } from '../i18n'
import { bytes, Empty, Head, Shown, StateLabel, states, useFound } from '../ui/bits'
import { Sheet } from '../ui/sheet'

export default function Sites() {
  const sites = useFound<Site>({ kind: 'Site', sort: 'name', limit: 500 })
  return (
    <>
      <Head title={t('nav.sites')} aside={<Button component={(p) => <Link {...p} to="/edit/Site" />}>{t('act.new')}</Button>} />
      <PageSection>
        <Grid hasGutter>
          <GridItem span={12}><Shown of={sites}>{(s) => s.items.length === 0 ? <Empty title={t('sites.none')} body={t('sites.none.body')}><Button variant="secondary" component={(p) => <Link {...p} to="/edit/Site" />}>{t('act.new')}</Button></Empty> : (
            <Sheet label={t('nav.sites')} head={[t('col.name'), t('col.tenant'), t('col.address'), t('col.devices')]} rows={s.items.map((i) => [`${i.tenant}/${i.name}`, [
              <Link key="n" to={`/edit/Site/${i.tenant}/${i.name}`}>{i.object?.spec?.displayName ?? i.name}</Link>, i.tenant, i.object?.spec?.address, <Here key="h" site={i.name} tenant={i.tenant} />,
            ]])} />
          )}</Shown></GridItem>
          <GridItem span={12}><Links /></GridItem>
        </Grid>
      </PageSection>
    </>
  )
}

function Here({ site, tenant }: { site: string; tenant: string }) {
  const found = useQuery({ queryKey: ['here', tenant, site], queryFn: ({ signal }) => find({ kind: 'Device', tenant, site, limit: 1 }, signal), meta: { kinds: ['Device'] } })
  if (!found.data) return null
  return <span className="labels"><Link to={`/devices?site=${site}`}>{t('dev.count', { n: found.data.total })}</Link>{states.filter((s) => s !== 'healthy' && found.data.states[s]).map((s) => <StateLabel key={s} state={s} />)}</span>
}

// Links reads the core's own counters, which tell of all tenants: only who has a role at the platform gets them.
function Links() {
  const counters = useQuery({ queryKey: ['metrics'], retry: false, refetchInterval: (q) => q.state.error ? false : 2000, queryFn: async () => {
    const text = await (await send('GET', '/metrics')).text()
    const rows = new Map<string, { received: number; sent: number }>()
    for (const m of text.matchAll(/^tributary_link(_wire)?_bytes_total\{(?:class="([^"]+)",)?direction="(\w+)"\} (\S+)$/gm)) {
      const row = rows.get(m[2] ?? 'TCP') ?? { received: 0, sent: 0 }
      row[m[3] as 'received' | 'sent'] = Number(m[4])
      rows.set(m[2] ?? 'TCP', row)
    }
    return [...rows]
  } })
  return (
    <Card><CardTitle component="h2">{t('sites.link')}</CardTitle><CardBody>
      {counters.error ? <Empty title={t('forbidden.title')} body={t('sites.link.none')} /> : <><p className="dim">{t('sites.link.body')}</p><Sheet label={t('sites.link')} head={[t('col.kind'), t('col.rx'), t('col.tx')]} rows={(counters.data ?? []).map(([k, r]) => [k, [k, bytes(r.received), bytes(r.sent)]])} /></>}
    </CardBody></Card>
  )
}
