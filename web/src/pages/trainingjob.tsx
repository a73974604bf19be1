import { Alert, Button, Card, CardBody, CardTitle, DescriptionList, DescriptionListDescription, DescriptionListGroup, DescriptionListTerm, Grid, GridItem, PageSection } from '@patternfly/react-core'
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { useEffect, useRef, useState, type ReactNode } from 'react'
import { useParams } from 'react-router'
import { apply, get, query, send, type TrainingJob } from '../api/client'
import { t } from '../i18n'
import { Sure } from '../ui/acts'
import { Ago, bytes, Head, Loading, Problem, Refusal } from '../ui/bits'
import { Sheet } from '../ui/sheet'
import { PhaseLabel } from '../ui/waves'
import { loss, Steps } from './training'

const over = ['Succeeded', 'Failed', 'Cancelled']

export default function TrainingJobPage() {
  const { tenant = 'default', name = '' } = useParams()
  const one = useQuery({ queryKey: ['object', 'TrainingJob', tenant, name], queryFn: ({ signal }) => get<TrainingJob>(`/api/v1/trainingjobs/${name}`, { tenant }, signal), meta: { kinds: ['TrainingJob'] } })
  const client = useQueryClient()
  const say = useMutation({ mutationFn: (change: NonNullable<TrainingJob['spec']>) => apply(JSON.stringify({ apiVersion: 'tributary/v1', kind: 'TrainingJob', metadata: { name, tenant, labels: one.data?.metadata.labels }, spec: { ...one.data?.spec, ...change } }), false), onSuccess: () => { void client.invalidateQueries() } })
  if (!one.data) return <><Head title={name} />{one.error ? <Problem error={one.error} again={() => { void one.refetch() }} /> : <Loading />}</>
  const { spec, status: s } = one.data
  const phase = s?.phase ?? ''
  const facts: [string, ReactNode][] = [
    [t('train.trainer'), spec?.trainer || <code key="c">{(spec?.command ?? []).join(' ')}</code>], [t('train.data'), <code key="d">{s?.data || spec?.data}</code>], [t('train.image'), <code key="i">{s?.image || spec?.image || t('dash')}</code>], [t('train.model'), <code key="m">{s?.model || spec?.model || t('dash')}</code>],
    [t('train.ranks'), spec?.ranks ?? 1], [t('train.each'), [spec?.resources?.cpus && t('train.cpus', { n: spec.resources.cpus }), spec?.resources?.memoryBytes && bytes(spec.resources.memoryBytes)].filter(Boolean).join(', ') || t('dash')], [t('train.limit'), spec?.timeLimit || t('dash')], [t('train.restarts'), s?.restarts ?? 0],
  ]
  return (
    <>
      <Head title={name} aside={!over.includes(phase) && <div className="acts">
        {spec?.suspend ? <Button onClick={() => say.mutate({ suspend: false })}>{t('roll.resume')}</Button> : <Button variant="secondary" onClick={() => say.mutate({ suspend: true })}>{t('train.suspend')}</Button>}
        <Sure danger label={t('train.cancel')} title={t('train.cancel')} acts={[{ label: t('train.cancel'), danger: true, act: () => say.mutate({ cancel: true }) }]}>{t('train.cancel.sure', { name })}</Sure>
      </div>}><p className="sub"><PhaseLabel phase={phase} /><span className="dim">{tenant}</span>{s?.started && <span className="dim">{t('roll.started')} <Ago time={s.started} /></span>}{s?.ended ? <span className="dim">{t('roll.ended')} <Ago time={s.ended} /></span> : s?.estimate && phase === 'Running' && <span className="dim">{t('roll.estimate', { time: new Date(s.estimate).toLocaleString() })}</span>}</p></Head>
      <PageSection><Grid hasGutter>
        <GridItem span={12}><div aria-live="polite"><Refusal error={say.error} />{s?.reason && <Alert component="p" isInline variant={phase === 'Failed' ? 'danger' : 'info'} title={s.reason} />}</div></GridItem>
        <GridItem span={12} lg={6}><Card isFullHeight><CardTitle component="h2">{t('col.progress')}</CardTitle><CardBody><Steps of={one.data} /><p className="gap">{t('train.loss')} <span className="amount">{loss(s?.loss)}</span></p><Curve key={one.data.metadata.uid} step={s?.step} value={s?.loss} />
          {Object.keys(s?.metrics ?? {}).length > 0 && <Sheet label={t('tab.metrics')} head={[t('col.name'), t('train.value')]} rows={Object.entries(s!.metrics!).map(([k, v]) => [k, [k, loss(v)]])} />}</CardBody></Card></GridItem>
        <GridItem span={12} lg={6}><Card isFullHeight><CardTitle component="h2">{t('box.facts')}</CardTitle><CardBody><DescriptionList isHorizontal isCompact>{facts.map(([k, v]) => <DescriptionListGroup key={k}><DescriptionListTerm>{k}</DescriptionListTerm><DescriptionListDescription className="digest">{v}</DescriptionListDescription></DescriptionListGroup>)}</DescriptionList></CardBody></Card></GridItem>
        <GridItem span={12}><Card><CardTitle component="h2">{t('tab.logs')}</CardTitle><CardBody><Logs tenant={tenant} name={name} live={phase === 'Running'} began={!!s?.started} /></CardBody></Card></GridItem>
      </Grid></PageSection>
    </>
  )
}

// Curve draws the losses that were told since the page was opened.
function Curve({ step, value }: { step?: number; value?: number }) {
  const [points, setPoints] = useState<[number, number][]>([])
  useEffect(() => { if (step !== undefined && value !== undefined) setPoints((p) => p.length && p[p.length - 1]![0] >= step ? p : [...p, [step, value] as [number, number]].slice(-500)) }, [step, value])
  if (points.length < 2) return <p className="dim">{t('train.curve')}</p>
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1])
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)]
  return <svg className="curve" viewBox="0 0 400 100" preserveAspectRatio="none" role="img" aria-label={t('train.loss')}><polyline points={points.map(([x, y]) => `${(400 * (x - x0)) / (x1 - x0 || 1)},${96 - (92 * (y - y0)) / (y1 - y0 || 1)}`).join(' ')} /></svg>
}

function Logs({ tenant, name, live, began }: { tenant: string; name: string; live: boolean; began: boolean }) {
  const logs = useQuery({ queryKey: ['training-logs', tenant, name], enabled: began, queryFn: async ({ signal }) => (await send('GET', query(`/api/v1/trainingjobs/${name}/logs`, { tenant }), undefined, undefined, signal)).text(), refetchInterval: live ? 2000 : 15_000, retry: false })
  const end = useRef<HTMLPreElement>(null)
  useEffect(() => { const e = end.current; if (e) e.scrollTop = e.scrollHeight }, [logs.data])
  if (logs.data) return <pre ref={end} className="yaml log" tabIndex={0} aria-label={t('tab.logs')}>{logs.data}</pre>
  return <p className="dim">{logs.error instanceof Error ? logs.error.message : t('train.nologs')}</p>
}
