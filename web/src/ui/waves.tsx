import { Label } from '@patternfly/react-core'
import type { Rollout, RolloutCounts } from '../api/client'
import { t, type Key } from '../i18n'

type Color = 'blue' | 'green' | 'red' | 'orange' | 'grey' | 'purple'
const phaseColors: Record<string, Color> = {
  Queued: 'grey', Running: 'blue', Waiting: 'purple', Paused: 'orange', Complete: 'green', RollingBack: 'orange', RolledBack: 'grey', Aborted: 'grey', Expired: 'red',
  Suspended: 'orange', Succeeded: 'green', Failed: 'red', Cancelled: 'grey',
}
export const phaseName = (phase: string) => phase in phaseColors ? t(`phase.${phase.toLowerCase()}` as Key) : phase
export const PhaseLabel = ({ phase }: { phase?: string }) => phase ? <Label isCompact color={phaseColors[phase] ?? 'grey'}>{phaseName(phase)}</Label> : null

// The states of a device of a rollout, in the order in which a bar shows them.
export const deviceStates = ['healthy', 'restored', 'given', 'restoring', 'failed', 'skipped', 'kept', 'waiting', 'away'] as const
export const deviceState = (s: string) => (deviceStates as readonly string[]).includes(s) ? t(`rdev.${s}` as Key) : s

// parts counts each device once: who is away waits too.
export function parts(c: RolloutCounts): [string, number][] {
  const n: Record<string, number> = { ...c, waiting: Math.max(0, (c.waiting ?? 0) - (c.away ?? 0)) }
  return deviceStates.flatMap((s): [string, number][] => n[s] ? [[s, n[s]]] : [])
}

export function Bar({ of }: { of: RolloutCounts }) {
  const all = parts(of)
  const words = all.map(([s, n]) => `${deviceState(s)} ${n}`).join(', ')
  return <div className="wave-bar" role="img" aria-label={words || t('roll.nobody')} title={words}>{all.map(([s, n]) => <span key={s} className={`part part-${s}`} style={{ flexGrow: n }} />)}</div>
}
export function Legend({ of }: { of: RolloutCounts }) {
  return <ul className="legend">{parts(of).map(([s, n]) => <li key={s}><i className={`part-${s}`} />{deviceState(s)} <b>{n}</b></li>)}</ul>
}

// Waves draws the waves in their order; the one under way stands out.
export function Waves({ of }: { of: Rollout }) {
  const now = of.status?.wave ?? 0
  const waves = of.status?.waves ?? []
  return (
    <ol className="waves">
      {waves.map((w, i) => {
        const asked = of.spec?.waves?.[i]
        const gate = [asked?.approve ? t('roll.gate.approve') : '', asked?.pause ? t('roll.gate.pause', { time: asked.pause }) : ''].filter(Boolean).join(' · ')
        return (
          <li key={i} className={`wave ${i + 1 === now ? 'wave-now' : i + 1 < now ? 'wave-past' : ''}`} aria-current={i + 1 === now ? 'step' : undefined}>
            <div className="wave-head"><b>{w.name || (i === waves.length - 1 && !asked ? t('roll.rest') : t('roll.wave', { n: i + 1 }))}</b><span className="dim">{t('dev.count', { n: w.all })}</span></div>
            <Bar of={w} /><Legend of={w} />
            {gate && <p className="dim wave-gate">{gate}</p>}
          </li>
        )
      })}
    </ol>
  )
}
