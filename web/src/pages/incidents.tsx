import { Label, PageSection, ToggleGroup, ToggleGroupItem } from '@patternfly/react-core'
import { Link, useSearchParams } from 'react-router'
import type { Incident } from '../api/client'
import { t } from '../i18n'
import { Ago, Empty, Head, Shown, useThings } from '../ui/bits'
import { Sheet } from '../ui/sheet'

// stateOf is open, acknowledged or closed: that a person looks after it is in the spec.
export const stateOf = (o: Incident) => o.status?.state === 'closed' || o.spec?.closed ? 'closed' : o.spec?.acknowledged ? 'acknowledged' : 'open'
export function IncidentState({ of }: { of: Incident }) {
  const state = stateOf(of)
  return <Label isCompact color={state === 'open' ? 'red' : state === 'acknowledged' ? 'orange' : 'grey'}>{t(`inc.${state}`)}</Label>
}
export const causeName = (cause?: string) => cause === 'link' ? t('inc.cause.link') : cause === 'anomaly' ? t('inc.cause.anomaly') : cause ?? ''

export default function Incidents() {
  const [params, setParams] = useSearchParams()
  const which = params.get('state') ?? 'now'
  const incidents = useThings<Incident>('incidents', 'Incident')
  const fits = (o: Incident) => which === 'all' || (which === 'closed') === (stateOf(o) === 'closed')
  const choose = (v: string) => setParams(v === 'now' ? {} : { state: v }, { replace: true })
  return (
    <>
      <Head title={t('nav.incidents')} aside={<ToggleGroup aria-label={t('col.state')}>{(['now', 'closed', 'all'] as const).map((v) => <ToggleGroupItem key={v} text={t(`inc.${v}`)} buttonId={`inc-${v}`} isSelected={which === v} onChange={() => choose(v)} />)}</ToggleGroup>} />
      <PageSection><Shown of={incidents}>{(l) => {
        const rows = l.items.filter(fits).sort((a, b) => (b.status?.since ?? '').localeCompare(a.status?.since ?? ''))
        if (rows.length === 0) return <Empty title={which === 'now' ? t('inc.none') : t('empty.filter')} body={which === 'now' ? t('inc.none.body') : undefined} />
        return <Sheet label={t('nav.incidents')} head={[t('col.name'), t('col.state'), t('inc.cause'), t('inc.what'), t('col.devices'), t('over.sites'), t('inc.findings'), t('roll.since')]} rows={rows.map((o) => [`${o.metadata.tenant}/${o.metadata.name}`, [
          <span key="n"><Link to={`/incidents/${o.metadata.tenant}/${o.metadata.name}`}>{o.metadata.name}</Link>{o.metadata.tenant !== 'default' && <span className="dim"> {o.metadata.tenant}</span>}</span>,
          <IncidentState key="s" of={o} />, causeName(o.status?.cause), o.status?.message, o.status?.count, (o.status?.sites ?? []).join(', '), o.status?.findings ?? 0, <Ago key="a" time={o.status?.since} />,
        ]])} />
      }}</Shown></PageSection>
    </>
  )
}
