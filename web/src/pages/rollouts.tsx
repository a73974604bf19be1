import { Button, PageSection } from '@patternfly/react-core'
import { Link } from 'react-router'
import type { Rollout } from '../api/client'
import { t } from '../i18n'
import { Ago, Empty, Head, Shown, useThings } from '../ui/bits'
import { Sheet } from '../ui/sheet'
import { Bar, PhaseLabel } from '../ui/waves'

export const changeOf = (o: Rollout) => (o.status?.change ?? o.spec?.change ?? []).filter((c) => !('pinnedBy' in c && c.pinnedBy)).map((c) => `${c.kind} ${c.name}${c.revision ? ` → ${c.revision}` : ''}`).join(', ')

export default function Rollouts() {
  const rollouts = useThings<Rollout>('rollouts', 'Rollout')
  const make = <Button component={(p) => <Link {...p} to="/edit/Rollout" />}>{t('act.new')}</Button>
  return (
    <>
      <Head title={t('nav.rollouts')} aside={make} />
      <PageSection><Shown of={rollouts}>{(l) => l.items.length === 0 ? <Empty title={t('roll.none')} body={t('roll.none.body')}>{make}</Empty> : (
        <Sheet label={t('nav.rollouts')} head={[t('col.name'), t('col.tenant'), t('roll.phase'), t('roll.change'), t('roll.waves'), t('col.progress'), t('roll.started')]} rows={[...l.items].sort((a, b) => (b.metadata.created ?? '').localeCompare(a.metadata.created ?? '')).map((o) => {
          const all = o.status?.waves?.length ?? 0
          return [`${o.metadata.tenant}/${o.metadata.name}`, [
            <Link key="n" to={`/rollouts/${o.metadata.tenant}/${o.metadata.name}`}>{o.metadata.name}</Link>, o.metadata.tenant, <PhaseLabel key="p" phase={o.status?.phase} />, changeOf(o),
            all ? t('fleet.of', { n: Math.min(o.status?.wave ?? 0, all), total: all }) : t('dash'), <div key="b" className="share">{o.status && <Bar of={o.status.devices} />}</div>, <Ago key="a" time={o.status?.started ?? o.metadata.created} />,
          ]]
        })} />
      )}</Shown></PageSection>
    </>
  )
}
