import { Alert, Button, Content, EmptyState, EmptyStateActions, EmptyStateBody, EmptyStateFooter, Label, PageSection, Spinner, Title } from '@patternfly/react-core'
import { BanIcon, CheckCircleIcon, CubesIcon, ExclamationCircleIcon, ExclamationTriangleIcon, OutlinedClockIcon, PowerOffIcon, SearchIcon, UserClockIcon } from '@patternfly/react-icons'
import { useQuery, type UseQueryResult } from '@tanstack/react-query'
import { useEffect, useState, type ReactNode } from 'react'
import { Link } from 'react-router'
import { Fault, find, get, type Listed, type Thing } from '../api/client'
import { t, type Key } from '../i18n'

export const states = ['critical', 'unapproved', 'degraded', 'offline', 'healthy', 'retired'] as const
export type State = (typeof states)[number]
const looks: Record<State, { color: 'red' | 'blue' | 'orange' | 'grey' | 'green'; icon: ReactNode }> = {
  critical: { color: 'red', icon: <ExclamationCircleIcon /> }, unapproved: { color: 'blue', icon: <UserClockIcon /> }, degraded: { color: 'orange', icon: <ExclamationTriangleIcon /> },
  offline: { color: 'grey', icon: <PowerOffIcon /> }, healthy: { color: 'green', icon: <CheckCircleIcon /> }, retired: { color: 'grey', icon: <BanIcon /> },
}
export const isState = (s: string | undefined): s is State => (states as readonly string[]).includes(s ?? '')
export const stateName = (s: State) => t(`state.${s}`)
export function StateLabel({ state }: { state?: string }) {
  if (!isState(state)) return null
  return <Label isCompact color={looks[state].color} icon={looks[state].icon}>{stateName(state)}</Label>
}

export function ago(time: string | number | undefined | null, now = Date.now()): string {
  if (!time) return t('ago.never')
  const s = Math.max(0, (now - new Date(time).getTime()) / 1000)
  if (s < 10) return t('ago.now')
  if (s < 60) return t('ago.s', { n: Math.floor(s / 10) * 10 })
  if (s < 3600) return t('ago.min', { n: Math.floor(s / 60) })
  if (s < 172_800) return t('ago.h', { n: Math.floor(s / 3600) })
  return t('ago.d', { n: Math.floor(s / 86_400) })
}
export function Ago({ time }: { time: string | number | undefined | null }) {
  const [, again] = useState(0)
  useEffect(() => { const i = setInterval(() => again((n) => n + 1), 10_000); return () => clearInterval(i) }, [])
  return <time className="nowrap" dateTime={time ? new Date(time).toISOString() : undefined} title={time ? new Date(time).toLocaleString() : undefined}>{ago(time)}</time>
}
export function bytes(n: number | undefined): string {
  if (n === undefined) return t('dash')
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let i = 0
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024
  return `${n >= 100 || i === 0 ? Math.round(n) : n.toFixed(1)} ${units[i]}`
}

export function Head({ title, children, aside }: { title: string; children?: ReactNode; aside?: ReactNode }) {
  useEffect(() => { document.title = `${title} · ${t('app.name')}` }, [title])
  return (
    <PageSection className="head" aria-label={title}>
      <div className="head-row"><div><Title headingLevel="h1">{title}</Title>{children}</div>{aside && <div className="head-aside">{aside}</div>}</div>
    </PageSection>
  )
}

export function Problem({ error, again }: { error: unknown; again?: () => void }) {
  const f = error instanceof Fault ? error : null
  if (f?.status === 403) return <EmptyState headingLevel="h2" icon={BanIcon} titleText={t('forbidden.title')}><EmptyStateBody>{t('forbidden.body')}<Content component="small">{f.message}</Content></EmptyStateBody></EmptyState>
  if (f?.status === 404) return <EmptyState headingLevel="h2" icon={SearchIcon} titleText={t('missing.title')}><EmptyStateBody>{t('missing.body')}<Content component="small">{f.message}</Content></EmptyStateBody><EmptyStateFooter><EmptyStateActions><Link to="/">{t('missing.back')}</Link></EmptyStateActions></EmptyStateFooter></EmptyState>
  return (
    <EmptyState headingLevel="h2" status="danger" titleText={t('error.title')}>
      <EmptyStateBody>{f ? f.message : t('error.away')}{f?.remedy && <Content component="small">{f.remedy}</Content>}</EmptyStateBody>
      {again && <EmptyStateFooter><EmptyStateActions><Button variant="secondary" onClick={again}>{t('error.again')}</Button></EmptyStateActions></EmptyStateFooter>}
    </EmptyState>
  )
}
export function Refusal({ error }: { error: unknown }) {
  if (!error) return null
  const f = error instanceof Fault ? error : null
  const all = f?.causes.length ? f.causes : f ? [f] : []
  return (
    <Alert component="p" isInline variant="danger" title={t('edit.refused')} className="refusal">
      {all.length === 0 && <p>{t('error.away')}</p>}
      {all.map((c, i) => <p key={i}>{c.field && <code>{c.field}</code>} {c.message}{c.remedy && <em> {c.remedy}</em>}</p>)}
    </Alert>
  )
}
export const Loading = () => <EmptyState headingLevel="h2" icon={Spinner} titleText={t('load.title')} />
export function Empty({ title, body, children, filtered }: { title: string; body?: string; children?: ReactNode; filtered?: boolean }) {
  return <EmptyState headingLevel="h2" variant="sm" icon={filtered ? SearchIcon : CubesIcon} titleText={title}>{body && <EmptyStateBody>{body}</EmptyStateBody>}{children && <EmptyStateFooter><EmptyStateActions>{children}</EmptyStateActions></EmptyStateFooter>}</EmptyState>
}
// Shown gives what was read, or the state in which reading is.
export function Shown<T>({ of, children }: { of: UseQueryResult<T>; children: (data: T) => ReactNode }) {
  if (of.data !== undefined) return <>{children(of.data)}</>
  if (of.error) return <Problem error={of.error} again={() => { void of.refetch() }} />
  return <Loading />
}
export const Clock = () => <OutlinedClockIcon />

// useFound asks the search, and again when one of the kinds changes.
export function useFound<T = Thing>(params: Record<string, string | number | undefined> & { kind: string }, on: string[] = []) {
  return useQuery({ queryKey: ['search', params], queryFn: ({ signal }) => find<T>(params, signal), meta: { kinds: [params.kind, ...on] }, placeholderData: (old) => old })
}
export function useThings<T = Thing>(plural: string, kind: string, tenant = '*') {
  return useQuery({ queryKey: ['list', plural, tenant], queryFn: ({ signal }) => get<Listed<T>>(`/api/v1/${plural}`, { tenant, limit: 1000 }, signal), meta: { kinds: [kind] } })
}
// Kinds that have a page of their own, beside the editor.
const pages: Record<string, string> = { Rollout: '/rollouts', Incident: '/incidents', TrainingJob: '/training' }
export const pathOf = (kind: string, tenant: string | undefined, name: string) => kind === 'Device' ? `/devices/${tenant ?? 'default'}/${name}` : kind === 'Tenant' ? `/edit/Tenant/default/${name}` : kind in pages ? `${pages[kind]}/${tenant ?? 'default'}/${name}` : `/edit/${kind}/${tenant ?? 'default'}/${name}`
export function Labels({ of }: { of?: Record<string, string> }) {
  return <span className="labels">{Object.entries(of ?? {}).sort().map(([k, v]) => <Label key={k} isCompact variant="outline">{v ? `${k}=${v}` : k}</Label>)}</span>
}
export const lines = (text: string) => text.split('\n').map((l) => l.trim()).filter(Boolean)
export const pairs = (text: string) => Object.fromEntries(lines(text).map((l) => { const i = l.indexOf('='); return i < 0 ? [l, ''] : [l.slice(0, i).trim(), l.slice(i + 1).trim()] }))
export const unpairs = (of?: Record<string, string>) => Object.entries(of ?? {}).map(([k, v]) => `${k}=${v}`).join('\n')
export const kindKey = (k: string): Key | null => ({ Device: 'col.device', Fleet: 'nav.fleets', App: 'nav.apps', Site: 'col.site', Tenant: 'col.tenant' } as Record<string, Key>)[k] ?? null
