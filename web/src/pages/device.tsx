import { Alert, Button, Card, CardBody, CardTitle, DescriptionList, DescriptionListDescription, DescriptionListGroup, DescriptionListTerm, Grid, GridItem, Label, Modal, ModalBody, ModalFooter, ModalHeader, PageSection, Tab, TabTitleText, Tabs } from '@patternfly/react-core'
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table'
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { lazy, Suspense, useState } from 'react'
import { Link, useNavigate, useParams } from 'react-router'
import { stringify } from 'yaml'
import { call, get, query, type Device, type EventEntry, type UsageReport } from '../api/client'
import { t, type Key } from '../i18n'
import { Ago, bytes, Empty, Head, Labels, Loading, Problem, Refusal, Shown, StateLabel, useFound } from '../ui/bits'
import { EventList } from '../ui/eventlist'
import { Hardware } from './hardware'

const Live = lazy(() => import('./live'))
const tabs: [string, Key][] = [['summary', 'tab.summary'], ['hardware', 'tab.hardware'], ['apps', 'tab.apps'], ['metrics', 'tab.metrics'], ['logs', 'tab.logs'], ['usage', 'tab.usage'], ['terminal', 'tab.terminal'], ['history', 'tab.history'], ['yaml', 'tab.yaml']]

export default function DevicePage() {
  const { tenant = 'default', name = '', tab = 'summary' } = useParams()
  const go = useNavigate()
  const base = `/api/v1/devices/${name}`
  const device = useQuery({ queryKey: ['device', tenant, name], queryFn: ({ signal }) => get<Device>(base, { tenant }, signal), meta: { kinds: ['Device'] } })
  const line = useFound<Device>({ kind: 'Device', q: name, tenant, limit: 50 })
  const state = line.data?.items.find((i) => i.name === name)?.state
  if (device.error && !device.data) return <><Head title={name} /><PageSection><Problem error={device.error} again={() => { void device.refetch() }} /></PageSection></>
  const d = device.data
  return (
    <>
      <Head title={name} aside={d && <Acts device={d} tenant={tenant} />}><p className="sub"><StateLabel state={state} /> <span className="dim">{tenant}</span> {d?.spec?.site && <Link to={`/devices?site=${d.spec.site}`}>{d.spec.site}</Link>} <Labels of={d?.metadata.labels} /></p></Head>
      <PageSection type="tabs" hasBodyWrapper={false}>
        <Tabs activeKey={tab} onSelect={(_, k) => { void go(`/devices/${tenant}/${name}/${String(k)}`, { replace: true }) }} aria-label={name} usePageInsets>
          {tabs.map(([k, title]) => <Tab key={k} eventKey={k} tabContentId="device-panel" title={<TabTitleText>{t(title)}</TabTitleText>} />)}
        </Tabs>
      </PageSection>
      <PageSection id="device-panel" aria-label={t(tabs.find(([k]) => k === tab)?.[1] ?? 'tab.summary')}>
        {!d ? <Loading /> : (
          <Suspense fallback={<Loading />}>
            {tab === 'summary' && <Summary d={d} />}
            {tab === 'hardware' && <Hardware tenant={tenant} name={name} />}
            {tab === 'apps' && <AppsOf d={d} />}
            {(tab === 'metrics' || tab === 'logs' || tab === 'terminal') && <Live key={tab} what={tab} device={d} tenant={tenant} />}
            {tab === 'usage' && <Usage tenant={tenant} name={name} />}
            {tab === 'history' && <History tenant={tenant} name={name} />}
            {tab === 'yaml' && <pre className="yaml" tabIndex={0} aria-label={t('tab.yaml')}>{stringify(d)}</pre>}
          </Suspense>
        )}
      </PageSection>
    </>
  )
}

function Acts({ device, tenant }: { device: Device; tenant: string }) {
  const client = useQueryClient()
  const [sure, setSure] = useState(false)
  const name = device.metadata.name
  const act = useMutation({ mutationFn: (verb: string) => call('POST', query(`/api/v1/devices/${name}/${verb}`, { tenant })), onSuccess: () => { setSure(false); void client.invalidateQueries() } })
  return (
    <div className="acts">
      {act.error && <Refusal error={act.error} />}
      {!device.spec?.approved && !device.spec?.retired && <Button isLoading={act.isPending} onClick={() => act.mutate('approve')}>{t('act.approve')}</Button>}
      <Button variant="secondary" component={(p) => <Link {...p} to={`/edit/Device/${tenant}/${name}`} />}>{t('act.edit')}</Button>
      {!device.spec?.retired && <Button variant="link" isDanger onClick={() => setSure(true)}>{t('act.retire')}</Button>}
      {sure && <Modal isOpen variant="small" onClose={() => setSure(false)} aria-label={t('act.retire')}><ModalHeader title={t('act.retire')} titleIconVariant="warning" /><ModalBody>{t('act.retire.sure', { name })}<Refusal error={act.error} /></ModalBody>
        <ModalFooter><Button variant="danger" isLoading={act.isPending} onClick={() => act.mutate('retire')}>{t('act.retire')}</Button><Button variant="link" onClick={() => setSure(false)}>{t('act.cancel')}</Button></ModalFooter></Modal>}
    </div>
  )
}

function Summary({ d }: { d: Device }) {
  const s = d.status, h = s?.hardware
  const parents = useFound<Device>({ kind: 'Device', q: s?.parent && s.parent !== 'core' ? s.parent : undefined, limit: 1 })
  const below = useFound<Device>({ kind: 'Device', parent: s?.id, limit: 100 })
  const up = parents.data?.items[0]
  const facts: [Key, React.ReactNode][] = [
    ['col.parent', s?.parent === 'core' ? t('over.core') : up && up.object?.status?.id === s?.parent ? <Link to={`/devices/${up.tenant}/${up.name}`}>{up.name}</Link> : s?.parent], ['box.tier', s?.tier], ['box.relay', s?.relay ? t('box.yes') : t('box.no')],
    ['col.seen', <Ago key="seen" time={s?.lastSeen} />], ['box.generation', s?.desired ? t('box.manifest', { applied: s.applied ?? 0, desired: s.desired }) : undefined], ['col.version', s?.version], ['box.product', [h?.vendor, h?.product].filter(Boolean).join(' ')], ['box.serial', h?.serial], ['box.arch', h?.arch],
    ['box.cpus', h?.cpuModel ? `${h.cpus} × ${h.cpuModel}` : h?.cpus], ['box.memory', bytes(h?.memoryBytes)], ['box.disk', h?.diskBytes ? bytes(h.diskBytes) : undefined], ['box.os', h?.os], ['box.kernel', h?.kernel], ['box.profile', h?.profile], ['box.tpm', h?.tpm], ['box.addresses', s?.addresses?.join(', ')], ['box.id', <code key="id">{s?.id}</code>],
  ]
  return (
    <Grid hasGutter>
      <GridItem span={12} lg={5}><Card isFullHeight><CardTitle component="h2">{t('box.health')}</CardTitle><CardBody>
        {(s?.health ?? []).length === 0 ? <Alert component="p" isInline isPlain variant="success" title={t('box.well')} /> : s!.health!.map((w) => (
          <Alert component="p" key={w.name} isInline variant={w.severity === 'critical' ? 'danger' : w.severity === 'degraded' ? 'warning' : 'info'} title={w.message} className="finding"><p><code>{w.name}</code> <span className="dim">{t('box.since', { ago: '' })}<Ago time={w.since * 1000} /></span></p>{w.remedy && <p>{w.remedy}</p>}</Alert>
        ))}
        {(below.data?.total ?? 0) > 0 && <><h3 className="gap">{t('box.below')}</h3><ul className="needs">{below.data!.items.map((b) => <li key={b.tenant + b.name}><StateLabel state={b.state} /><Link to={`/devices/${b.tenant}/${b.name}`}>{b.name}</Link></li>)}</ul></>}
      </CardBody></Card></GridItem>
      <GridItem span={12} lg={7}><Card isFullHeight><CardTitle component="h2">{t('box.facts')}</CardTitle><CardBody>
        <DescriptionList isCompact isHorizontal columnModifier={{ default: '1Col', xl: '2Col' }}>{facts.filter(([, v]) => v !== undefined && v !== '').map(([k, v]) => <DescriptionListGroup key={k}><DescriptionListTerm>{t(k)}</DescriptionListTerm><DescriptionListDescription>{v}</DescriptionListDescription></DescriptionListGroup>)}</DescriptionList>
      </CardBody></Card></GridItem>
      <GridItem span={12}><AppsOf d={d} /></GridItem>
    </Grid>
  )
}

const appColor = (s: string) => s === 'Running' || s === 'Exited' ? 'green' : s === 'Failed' ? 'red' : s === 'Backoff' ? 'orange' : 'blue'
function AppsOf({ d }: { d: Device }) {
  const apps = d.status?.apps ?? []
  if (apps.length === 0) return <Empty title={t('apps.none')} body={t('apps.none.body')} />
  return (
    <Card><CardTitle component="h2">{t('tab.apps')}</CardTitle><CardBody><Table variant="compact" aria-label={t('tab.apps')} borders={false}>
      <Thead><Tr><Th>{t('col.name')}</Th><Th>{t('col.state')}</Th><Th>{t('col.services')}</Th><Th>{t('col.message')}</Th></Tr></Thead>
      <Tbody>{apps.map((a) => (
        <Tr key={a.name}><Td dataLabel={t('col.name')}>{a.name}</Td><Td dataLabel={t('col.state')}><Label isCompact color={appColor(a.state)}>{a.state}</Label></Td>
          <Td dataLabel={t('col.services')}><span className="labels">{(a.services ?? []).map((s) => <Label key={s.name} isCompact variant="outline" color={appColor(s.state)}>{s.name}{s.restarts ? ` · ${t('apps.restarts', { n: s.restarts })}` : ''}</Label>)}</span></Td>
          <Td dataLabel={t('col.message')} modifier="breakWord">{a.message ?? (a.services ?? []).map((s) => s.message).filter(Boolean).join('; ')}</Td></Tr>
      ))}</Tbody>
    </Table></CardBody></Card>
  )
}

function Usage({ tenant, name }: { tenant: string; name: string }) {
  const usage = useQuery({ queryKey: ['usage', tenant, name], queryFn: ({ signal }) => get<UsageReport>('/api/v1/usage', { tenant, device: name }, signal), refetchInterval: 5000 })
  return <Shown of={usage}>{(u) => (u.totals ?? []).length === 0 ? <Empty title={t('usage.none')} /> : (
    <Card><CardBody>
      <Table variant="compact" aria-label={t('tab.usage')} borders={false}>
        <Thead><Tr><Th>{t('col.service')}</Th><Th>{t('col.runtime')}</Th><Th>{t('col.cpu')}</Th><Th>{t('col.memory')}</Th><Th>{t('col.rx')}</Th><Th>{t('col.tx')}</Th></Tr></Thead>
        <Tbody>{u.totals!.map((v) => <Tr key={`${v.app}/${v.service}`}><Td dataLabel={t('col.service')}>{`${v.app}/${v.service}`}</Td><Td dataLabel={t('col.runtime')}>{(v.runMillis / 1000).toFixed(1)}</Td><Td dataLabel={t('col.cpu')}>{(v.cpuMicros / 1e6).toFixed(3)}</Td><Td dataLabel={t('col.memory')}>{(v.memoryByteSeconds / 1e6).toFixed(1)}</Td><Td dataLabel={t('col.rx')}>{bytes(v.rxBytes)}</Td><Td dataLabel={t('col.tx')}>{bytes(v.txBytes)}</Td></Tr>)}</Tbody>
      </Table>
      <p className="dim">{t('usage.counted', { n: u.intervals, acked: u.acked })}</p>
    </CardBody></Card>
  )}</Shown>
}

const boots = /boot|update|slot|release|start|reset|recover|rescue/
function History({ tenant, name }: { tenant: string; name: string }) {
  const events = useQuery({ queryKey: ['events', tenant, name], queryFn: ({ signal }) => get<{ items: EventEntry[] }>('/api/v1/events', { tenant, device: name, limit: 200 }, signal), refetchInterval: 2000 })
  return <Shown of={events}>{(e) => {
    const starts = e.items.filter((x) => boots.test(x.event.name))
    return (
      <Grid hasGutter>
        {starts.length > 0 && <GridItem span={12}><Card><CardTitle component="h2">{t('hist.boots')}</CardTitle><CardBody><EventList events={starts} device={false} /></CardBody></Card></GridItem>}
        <GridItem span={12}><Card><CardTitle component="h2">{t('hist.all')}</CardTitle><CardBody><EventList events={e.items} device={false} /></CardBody></Card></GridItem>
      </Grid>
    )
  }}</Shown>
}
