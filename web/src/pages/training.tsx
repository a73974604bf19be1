import { Button, Card, CardBody, CardTitle, Grid, GridItem, PageSection, Progress, ProgressMeasureLocation, ProgressSize } from '@patternfly/react-core'
import { Link } from 'react-router'
import type { TrainingJob } from '../api/client'
import { t } from '../i18n'
import { Ago, Empty, Head, Shown, useThings } from '../ui/bits'
import { Sheet } from '../ui/sheet'
import { PhaseLabel } from '../ui/waves'

export function Steps({ of }: { of: TrainingJob }) {
  const s = of.status
  if (!s?.steps) return <>{s?.step || t('dash')}</>
  return <Progress className="share" size={ProgressSize.sm} aria-label={t('train.steps')} value={(100 * (s.step ?? 0)) / s.steps} label={`${s.step ?? 0}/${s.steps}`} valueText={`${s.step ?? 0}/${s.steps}`} measureLocation={ProgressMeasureLocation.outside} />
}
export const loss = (n?: number) => n === undefined ? t('dash') : n.toPrecision(4)

export default function Training() {
  const jobs = useThings<TrainingJob>('trainingjobs', 'TrainingJob')
  const make = <Button component={(p) => <Link {...p} to="/edit/TrainingJob" />}>{t('act.new')}</Button>
  return (
    <>
      <Head title={t('nav.training')} aside={make} />
      <PageSection><Shown of={jobs}>{(l) => l.items.length === 0 ? <Empty title={t('train.none')} body={t('train.none.body')}>{make}</Empty> : (
        <Grid hasGutter>
          <GridItem span={12}><Card><CardTitle component="h2">{t('train.jobs')}</CardTitle><CardBody><Sheet label={t('train.jobs')} head={[t('col.name'), t('col.tenant'), t('roll.phase'), t('train.steps'), t('train.loss'), t('train.ends'), t('train.restarts'), t('roll.started')]} rows={[...l.items].sort((a, b) => (b.metadata.created ?? '').localeCompare(a.metadata.created ?? '')).map((o) => [`${o.metadata.tenant}/${o.metadata.name}`, [
            <Link key="n" to={`/training/${o.metadata.tenant}/${o.metadata.name}`}>{o.metadata.name}</Link>, o.metadata.tenant, <span key="p"><PhaseLabel phase={o.status?.phase} />{o.status?.reason && <div className="dim">{o.status.reason}</div>}</span>, <Steps key="s" of={o} />, loss(o.status?.loss),
            o.status?.phase === 'Running' && o.status.estimate ? new Date(o.status.estimate).toLocaleTimeString() : t('dash'), o.status?.restarts ?? 0, <Ago key="a" time={o.status?.started ?? o.metadata.created} />,
          ]])} /></CardBody></Card></GridItem>
          <GridItem span={12}><Card><CardTitle component="h2">{t('train.models')}</CardTitle><CardBody>{l.items.every((o) => !o.status?.model) ? <p className="dim">{t('train.nomodels')}</p> : (
            <Sheet label={t('train.models')} head={[t('train.model'), t('train.digest'), t('train.job'), t('train.ended')]} rows={l.items.filter((o) => o.status?.model).map((o) => [`${o.metadata.tenant}/${o.metadata.name}`, [o.spec?.model || o.metadata.name, <code key="d">{o.status!.model}</code>, <Link key="j" to={`/training/${o.metadata.tenant}/${o.metadata.name}`}>{o.metadata.name}</Link>, <Ago key="a" time={o.status!.ended} />]])} />
          )}</CardBody></Card></GridItem>
        </Grid>
      )}</Shown></PageSection>
    </>
  )
}
