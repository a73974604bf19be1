import { Alert, Button, Card, CardBody, CardTitle, DescriptionList, DescriptionListDescription, DescriptionListGroup, DescriptionListTerm, Grid, GridItem, Label, PageSection } from '@patternfly/react-core'
import { useQuery } from '@tanstack/react-query'
import { Link, useNavigate, useParams } from 'react-router'
import { get, query, type Rollout, type RolloutDevice } from '../api/client'
import { t } from '../i18n'
import { Sure, useOrder } from '../ui/acts'
import { Ago, Head, Loading, Problem, Refusal, Shown } from '../ui/bits'
import { Sheet } from '../ui/sheet'
import { Bar, deviceState, Legend, PhaseLabel, Waves } from '../ui/waves'

const over = ['Complete', 'RolledBack', 'Aborted', 'Expired']

export default function RolloutPage() {
  const { tenant = 'default', name = '' } = useParams()
  const one = useQuery({ queryKey: ['object', 'Rollout', tenant, name], queryFn: ({ signal }) => get<Rollout>(`/api/v1/rollouts/${name}`, { tenant }, signal), meta: { kinds: ['Rollout'] } })
  if (!one.data) return <><Head title={name} />{one.error ? <Problem error={one.error} again={() => { void one.refetch() }} /> : <Loading />}</>
  return <Shows of={one.data} tenant={tenant} name={name} />
}

function Shows({ of, tenant, name }: { of: Rollout; tenant: string; name: string }) {
  const s = of.status
  const order = useOrder()
  return (
    <>
      <Head title={name} aside={<Acts of={of} tenant={tenant} name={name} order={(o) => order.mutate({ path: query(`/api/v1/rollouts/${name}/${o}`, { tenant }) })} />}>
        <div className="sub"><PhaseLabel phase={s?.phase} /><span className="dim">{tenant}</span>{s?.started && <span className="dim">{t('roll.started')} <Ago time={s.started} /></span>}{s?.ended ? <span className="dim">{t('roll.ended')} <Ago time={s.ended} /></span> : s?.estimate && <span className="dim">{t('roll.estimate', { time: new Date(s.estimate).toLocaleString() })}</span>}</div>
      </Head>
      <PageSection><Grid hasGutter>
        <GridItem span={12}><div aria-live="polite">
          <Refusal error={order.error} />
          {s?.message && <Alert component="p" isInline variant={s.phase === 'Paused' || s.phase === 'RollingBack' ? 'warning' : s.phase === 'Complete' ? 'success' : 'info'} title={s.message} />}
        </div></GridItem>
        <GridItem span={12}><Card><CardTitle component="h2">{t('roll.waves')}</CardTitle><CardBody>
          {s && <div className="wave-all"><Bar of={s.devices} /><Legend of={s.devices} /></div>}
          {s?.waves?.length ? <Waves of={of} /> : <p className="dim">{t('roll.nowaves')}</p>}
        </CardBody></Card></GridItem>
        <GridItem span={12} lg={6}><Card isFullHeight><CardTitle component="h2">{t('roll.gates')}</CardTitle><CardBody><Gates of={of} /></CardBody></Card></GridItem>
        <GridItem span={12} lg={6}><Card isFullHeight><CardTitle component="h2">{t('roll.change')}</CardTitle><CardBody><Change of={of} tenant={tenant} /></CardBody></Card></GridItem>
        <GridItem span={12}><Card><CardTitle component="h2">{t('nav.devices')}</CardTitle><CardBody><Boxes tenant={tenant} name={name} /></CardBody></Card></GridItem>
      </Grid></PageSection>
    </>
  )
}

// Acts offers what the rollout's phase allows; what a role does not, the core refuses.
function Acts({ of, tenant, name, order }: { of: Rollout; tenant: string; name: string; order: (order: string) => void }) {
  const go = useNavigate()
  const undo = useOrder<Rollout>((r) => { void go(`/rollouts/${r.metadata.tenant ?? tenant}/${r.metadata.name}`) })
  const phase = of.status?.phase ?? ''
  const wave = of.status?.wave ?? 0
  // A rollout that waits is at the wave that is to begin: the one before says whether a person has to say yes.
  const moving = ['Running', 'Waiting', 'Paused'].includes(phase)
  return (
    <div className="acts">
      <Refusal error={undo.error} />
      {phase === 'Waiting' && of.spec?.waves?.[wave - 2]?.approve && (of.status?.approved ?? 0) < wave && <Button onClick={() => order('approve')}>{t('act.approve')}</Button>}
      {phase === 'Paused' && <Button onClick={() => order('resume')}>{t('roll.resume')}</Button>}
      {(phase === 'Running' || phase === 'Waiting') && <Button variant="secondary" onClick={() => order('pause')}>{t('roll.pause')}</Button>}
      {moving && wave < (of.status?.waves?.length ?? 0) && <Sure label={t('roll.promote')} title={t('roll.promote')} acts={[{ label: t('roll.promote'), act: () => order('promote') }]}>{t('roll.promote.sure')}</Sure>}
      {phase !== '' && !over.includes(phase) && (
        <Sure danger label={t('roll.abort')} title={t('roll.abort.title', { name })} acts={[...(phase === 'RollingBack' ? [] : [{ label: t('roll.abort.back'), danger: true, act: () => order('abort') }]), { label: t('roll.abort.keep'), act: () => order('keep') }]}>{t('roll.abort.sure')}</Sure>
      )}
      {over.includes(phase) && <Sure label={t('roll.undo')} title={t('roll.undo')} acts={[{ label: t('roll.undo'), act: () => undo.mutate({ path: query(`/api/v1/rollouts/${name}/undo`, { tenant }) }) }]}>{t('roll.undo.sure')}</Sure>}
    </div>
  )
}

function Gates({ of }: { of: Rollout }) {
  const { spec, status } = of
  const amount = (a?: { percent?: number; devices?: number }) => !a ? '' : a.percent !== undefined ? `${a.percent} %` : t('dev.count', { n: a.devices ?? 0 })
  const d = status?.devices
  const reached = (d?.healthy ?? 0) + (d?.given ?? 0) + (d?.failed ?? 0)
  const rows: [string, string][] = [
    [t('roll.minhealthy'), `${amount(spec?.minHealthy) || '90 %'}${reached ? ` (${t('roll.now', { n: d?.healthy ?? 0, total: reached })})` : ''}`],
    [t('roll.maxfailures'), `${amount(spec?.maxFailures) || t('dash')} (${t('roll.failednow', { n: d?.failed ?? 0 })})`],
    [t('roll.soak'), spec?.health?.soak ?? t('roll.default')], [t('roll.timeout'), spec?.health?.timeout ?? t('roll.default')],
    [t('roll.warnings'), [spec?.health?.warnings ?? 'critical', ...(spec?.health?.absent ?? [])].join(', ')], [t('roll.onfailure'), spec?.onFailure === 'rollback' ? t('roll.onfailure.rollback') : t('roll.onfailure.pause')],
    ...(spec?.atOnce ? [[t('roll.atonce'), String(spec.atOnce)] as [string, string]] : []), ...(spec?.hours ? [[t('roll.hours'), `${spec.hours} UTC`] as [string, string]] : []), ...(spec?.expires ? [[t('col.expires'), new Date(spec.expires).toLocaleString()] as [string, string]] : []),
  ]
  return <DescriptionList isHorizontal isCompact>{rows.map(([k, v]) => <DescriptionListGroup key={k}><DescriptionListTerm>{k}</DescriptionListTerm><DescriptionListDescription>{v}</DescriptionListDescription></DescriptionListGroup>)}</DescriptionList>
}

function Change({ of, tenant }: { of: Rollout; tenant: string }) {
  const rows = of.status?.change ?? []
  if (rows.length === 0) return <p className="dim">{t('roll.nochange')}</p>
  return <Sheet label={t('roll.change')} head={[t('col.kind'), t('col.name'), t('edit.before'), t('edit.after'), t('roll.with')]} rows={rows.map((c) => [`${c.kind}/${c.name}`, [c.kind, <Link key="h" to={`/history/${c.kind}/${tenant}/${c.name}`}>{c.name}</Link>, c.before || t('dash'), c.revision, c.pinnedBy ?? '']])} />
}

function Boxes({ tenant, name }: { tenant: string; name: string }) {
  const devices = useQuery({ queryKey: ['rollout-devices', tenant, name], queryFn: ({ signal }) => get<{ items: RolloutDevice[] | null }>(`/api/v1/rollouts/${name}/devices`, { tenant }, signal), meta: { kinds: ['Rollout', 'Device'] } })
  const color = { healthy: 'green', restored: 'green', given: 'blue', restoring: 'blue', failed: 'red', skipped: 'orange', kept: 'orange' } as const
  return <Shown of={devices}>{({ items }) => !items?.length ? <p className="dim">{t('roll.nobody')}</p> : (
    <Sheet label={t('nav.devices')} head={[t('col.name'), t('col.site'), t('roll.wavenumber'), t('col.state'), t('roll.since'), t('roll.why')]} rows={items.map((d) => [d.name, [
      <Link key="n" to={`/devices/${tenant}/${d.name}`}>{d.name}</Link>, d.site, d.wave, <Label key="s" isCompact color={color[d.state as keyof typeof color] ?? 'grey'}>{deviceState(d.state)}</Label>, d.since ? <Ago key="a" time={d.since} /> : '', d.why,
    ]])} />
  )}</Shown>
}
