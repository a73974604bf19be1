import { Button, Card, CardBody, CardTitle, Grid, GridItem, Label, PageSection } from '@patternfly/react-core'
import { useQuery } from '@tanstack/react-query'
import { Link } from 'react-router'
import { get, type Device, type EventEntry, type ExpectedDevice, type Fleet, type Incident, type Site } from '../api/client'
import { t } from '../i18n'
import { Ago, Empty, Head, Shown, StateLabel, stateName, states, useFound, useThings } from '../ui/bits'
import { EventList } from '../ui/eventlist'
import { WorldMap } from '../ui/map'
import { IncidentState, stateOf } from './incidents'
import { Tree } from '../ui/tree'

const drawn = 400

export default function Overview() {
  const devices = useFound<Device>({ kind: 'Device', sort: 'tier', limit: drawn })
  const sites = useFound<Site>({ kind: 'Site', limit: 1000 })
  const events = useQuery({ queryKey: ['events', 8], queryFn: ({ signal }) => get<{ items: EventEntry[] }>('/api/v1/events', { tenant: '*', limit: 8 }, signal), refetchInterval: 2000 })
  return (
    <>
      <Head title={t('nav.overview')} />
      <PageSection>
        <Shown of={devices}>{(d) => d.total === 0 ? <Empty title={t('over.first.title')} body={t('over.first.body')}><Button component={(p) => <Link {...p} to="/onboarding" />}>{t('over.first.do')}</Button></Empty> : (
          <Grid hasGutter>
            <GridItem span={12}>
              <ul className="counts" aria-label={t('over.devices')}>
                <li><Link to="/devices"><b>{d.total}</b><span>{t('over.devices')}</span></Link></li>
                {states.filter((s) => d.states[s]).map((s) => <li key={s} className={`count-${s}`}><Link to={`/devices?state=${s}`}><b>{d.states[s]}</b><span>{stateName(s)}</span></Link></li>)}
              </ul>
            </GridItem>
            <GridItem span={12} xl={5}><Needs /></GridItem>
            <GridItem span={12} xl={7}><Card isFullHeight><CardTitle component="h2">{t('over.map')}</CardTitle><CardBody><Shown of={sites}>{(s) => <WorldMap sites={s.items.flatMap((i) => i.object ? [i.object] : [])} devices={d.items.flatMap((i) => i.object ? [{ device: i.object, state: i.state }] : [])} />}</Shown></CardBody></Card></GridItem>
            <GridItem span={12}><Card><CardTitle component="h2">{t('over.tree')}</CardTitle><CardBody>
              <Tree devices={d.items.flatMap((i) => i.object ? [{ device: i.object, state: i.state ?? '' }] : [])} />
              {d.total > d.items.length && <p className="dim">{t('over.tree.part', { n: d.items.length, total: d.total })}</p>}
            </CardBody></Card></GridItem>
            <GridItem span={12}><Card><CardTitle component="h2">{t('over.recent')}</CardTitle><CardBody><Shown of={events}>{(e) => <EventList events={e.items} />}</Shown></CardBody></Card></GridItem>
          </Grid>
        )}</Shown>
      </PageSection>
    </>
  )
}

function Needs() {
  const devices = useFound<Device>({ kind: 'Device', state: 'critical,unapproved,degraded', sort: 'state', limit: 8 })
  const fleets = useFound<Fleet>({ kind: 'Fleet', limit: 200 })
  const expected = useFound<ExpectedDevice>({ kind: 'ExpectedDevice', limit: 200 })
  const incidents = useThings<Incident>('incidents', 'Incident')
  const open = (incidents.data?.items ?? []).filter((i) => stateOf(i) === 'open')
  const lacking = (fleets.data?.items ?? []).flatMap((f) => {
    const s = f.object?.status
    const out: { name: string; tenant: string; say: string }[] = []
    if (s?.missing?.length) out.push({ name: f.name, tenant: f.tenant, say: t('over.fleet.missing', { apps: s.missing.join(', ') }) })
    if (s?.rejected) out.push({ name: f.name, tenant: f.tenant, say: t('over.fleet.rejected', { n: s.rejected }) })
    return out
  })
  const stuck = (expected.data?.items ?? []).filter((e) => e.object?.status?.progress?.includes('error') || e.object?.status?.progress?.includes('warning'))
  return (
    <Card isFullHeight><CardTitle component="h2">{t('over.needs')}{open.length > 0 && <> <Link to="/incidents" className="count-open"><Label isCompact color="red">{t('over.incidents', { n: open.length })}</Label></Link></>}</CardTitle><CardBody>
      <Shown of={devices}>{(d) => d.total + lacking.length + stuck.length + open.length === 0 ? <Empty title={t('over.nothing')} body={t('over.nothing.body')} /> : (
        <ul className="needs">
          {open.slice(0, 5).map((i) => <li key={`${i.metadata.tenant}/${i.metadata.name}`}><IncidentState of={i} /><Link to={`/incidents/${i.metadata.tenant}/${i.metadata.name}`}>{i.metadata.name}</Link><span className="dim">{i.status?.message}</span><Ago time={i.status?.since} /></li>)}
          {open.length > 5 && <li><Link to="/incidents">{t('over.more', { n: open.length - 5 })}</Link></li>}
          {d.items.map((i) => {
            const worst = i.object?.status?.health?.find((w) => w.severity === 'critical') ?? i.object?.status?.health?.find((w) => w.severity === 'degraded')
            return <li key={`${i.tenant}/${i.name}`}><StateLabel state={i.state} /><Link to={`/devices/${i.tenant}/${i.name}`}>{i.name}</Link><span className="dim">{i.state === 'unapproved' ? t('over.approve') : worst ? worst.message : ''}</span>{worst && <Ago time={worst.since * 1000} />}</li>
          })}
          {d.total > d.items.length && <li><Link to="/devices?state=critical,unapproved,degraded">{t('over.more', { n: d.total - d.items.length })}</Link></li>}
          {lacking.map((f) => <li key={f.tenant + f.name + f.say}><StateLabel state="degraded" /><Link to={`/edit/Fleet/${f.tenant}/${f.name}`}>{f.name}</Link><span className="dim">{f.say}</span></li>)}
          {stuck.map((e) => <li key={e.name}><StateLabel state="degraded" /><Link to="/onboarding">{e.name}</Link><span className="dim">{e.object?.status?.message}</span></li>)}
        </ul>
      )}</Shown>
    </CardBody></Card>
  )
}
