import { Alert, Card, CardBody, CardTitle } from '@patternfly/react-core'
import type { RolloutPlan } from '../api/client'
import { t } from '../i18n'
import { bytes } from './bits'
import { Sheet } from './sheet'

const named = 12

// PlanWaves shows what a Rollout would do, before it does anything.
export function PlanWaves({ of }: { of: RolloutPlan }) {
  return (
    <Card><CardTitle component="h2">{t('plan.waves')}</CardTitle><CardBody>
      {of.waits && <Alert component="p" isInline isPlain variant="warning" title={t('plan.waits', { name: of.waits })} />}
      <ol className="waves">{(of.waves ?? []).map((w, i) => (
        <li key={i} className="wave">
          <div className="wave-head"><b>{w.name || t('roll.wave', { n: i + 1 })}</b><span className="dim">{t('dev.count', { n: w.devices?.length ?? 0 })}{w.away ? ` · ${t('plan.away', { n: w.away })}` : ''}</span></div>
          <p>{(w.devices ?? []).slice(0, named).join(', ')} {(w.devices?.length ?? 0) > named && <span className="dim">{t('plan.more', { n: w.devices!.length - named })}</span>}</p>
          {(w.approve || w.pause) && <p className="dim wave-gate">{[w.approve ? t('roll.gate.approve') : '', w.pause ? t('roll.gate.pause', { time: w.pause }) : ''].filter(Boolean).join(' · ')}</p>}
        </li>
      ))}</ol>
      {(of.refused ?? []).length > 0 && <><p className="gap">{t('plan.refused')}</p><Sheet label={t('plan.refused')} head={[t('col.device'), t('roll.why')]} rows={of.refused!.map((d) => [d.name, [d.name, d.why]])} /></>}
      {(of.links ?? []).length > 0 && <><p className="gap">{t('plan.links')}</p><Sheet label={t('plan.links')} head={[t('plan.link'), t('plan.artifacts'), t('plan.bytes')]} rows={of.links!.map((l) => [`${l.parent}/${l.child}`, [`${l.parent} → ${l.child}`, l.artifacts, bytes(l.bytes)]])} /></>}
    </CardBody></Card>
  )
}
