// What the console asks the core, typed by the core's own description of its API.
import type { components } from './schema'

type S = components['schemas']
export type Device = S['Device']
export type Fleet = S['Fleet']
export type App = S['App']
export type Site = S['Site']
export type Tenant = S['Tenant']
export type ExpectedDevice = S['ExpectedDevice']
export type Warning = NonNullable<NonNullable<Device['status']>['health']>[number]
export type Inventory = S['Inventory']
export type EventEntry = S['EventEntry']
export type UsageReport = S['UsageReport']
export type ApplyResult = NonNullable<S['ApplyReply']['results']>[number]
export type SearchHit = S['SearchHit']
export type Rollout = S['Rollout']
export type RolloutCounts = S['RolloutCounts']
export type RolloutDevice = S['RolloutDevice']
export type RolloutPlan = S['RolloutPlan']
export type RevisionHistory = S['RevisionHistory']
export type Cost = S['Cost']
export type Budget = S['Budget']
export type InvoiceEntry = S['InvoiceEntry']
export type Invoice = S['Document']
export type Incident = S['Incident']
export type AuditEntry = S['AuditEntry']
export type TrainingJob = S['TrainingJob']
export type Quota = S['Quota']
export type Person = S['Person']
export type LoggedIn = S['LoggedIn']
export type Session = S['Session']

// Any object, as far as all kinds are alike.
export interface Thing {
  apiVersion: string
  kind: string
  metadata: { name: string; tenant?: string; uid?: string; labels?: Record<string, string>; created?: string; updated?: string; revision?: number; generation?: number }
  spec?: Record<string, unknown>
  status?: Record<string, unknown>
}
export interface Found<T = Thing> { items: { tenant: string; kind: string; name: string; state?: string; site?: string; object?: T }[]; next?: string; total: number; states: Record<string, number> }
export interface Listed<T = Thing> { items: T[]; next?: string; revision: number }
export interface Who { name: string; role: string; account: string; person?: string; bindings: { role: string; tenant: string; site?: string; fleet?: string }[] }

// Fault is an error as the core tells it: what, where, and what to do.
export class Fault extends Error {
  constructor(readonly status: number, readonly code: string, message: string, readonly remedy: string, readonly field: string, readonly causes: Fault[]) { super(message) }
}

interface WireFault { code?: string; message?: string; remedy?: string; field?: string; line?: number; causes?: WireFault[] }

export function faultOf(status: number, e: WireFault): Fault {
  const where = [e.field, e.line ? `line ${e.line}` : ''].filter(Boolean).join(', ')
  return new Fault(status, e.code ?? 'internal', e.message ?? `HTTP ${status}`, e.remedy ?? '', where, (e.causes ?? []).map((c) => faultOf(status, c)))
}

// How somebody is in: by a session, whose secret the browser keeps in a cookie that no script reads, or by a token, which
// is kept for this tab alone and goes with it. That there is a session is noted for all tabs, and never what it is.
const tokenKey = 'tributary.token', sessionKey = 'tributary.session', personKey = 'tributary.person'
let token = sessionStorage.getItem(tokenKey) ?? ''
let inside = localStorage.getItem(sessionKey) !== null
const leavers = new Set<() => void>()
// Why somebody is out again; '' for who just came.
export type Reason = '' | 'ended' | 'out' | 'changed' | 'unsure'
let reason: Reason = ''
function left(why: Reason) { reason = why; token = ''; sessionStorage.removeItem(tokenKey); sessionStorage.removeItem(personKey); leavers.forEach((f) => f()) }
window.addEventListener('storage', (e) => {
  if (e.key !== sessionKey) return
  inside = e.newValue !== null
  if (!inside && !token) left('ended')
})
export const session = {
  token: () => token,
  on: () => token !== '' || inside,
  begin(t: string) { token = t; sessionStorage.setItem(tokenKey, t) },
  // enter is after a login that set the cookie; the core tells of whom.
  enter(p: Person) { token = ''; sessionStorage.removeItem(tokenKey); inside = true; localStorage.setItem(sessionKey, 'on'); session.remember(p) },
  // remember keeps what the core told last about the person, for what only an administrator may ask.
  remember(p: Person) { sessionStorage.setItem(personKey, JSON.stringify(p)) },
  person(): Person | null { try { return JSON.parse(sessionStorage.getItem(personKey) ?? 'null') as Person | null } catch { return null } },
  end(why: Reason = 'ended') { if (!token) { inside = false; localStorage.removeItem(sessionKey) } left(why) },
  reason: () => reason,
  onEnd(f: () => void) { leavers.add(f); return () => { leavers.delete(f) } },
}

export async function send(method: string, path: string, body?: string, type = 'application/json', signal?: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = {}
  if (token) headers.Authorization = `Bearer ${token}`
  if (body !== undefined) headers['Content-Type'] = type
  const used = token
  const r = await fetch(path, { method, headers, body, signal, credentials: 'same-origin' })
  if (r.ok) return r
  let wire: WireFault = {}
  try { wire = await r.json() as WireFault } catch { /* not of the API: the status says it */ }
  if (r.status === 401 && session.on() && used === token && !await proving(path)) session.end()
  throw faultOf(r.status, wire)
}

// proving tells whether a 401 is about a password or a code that is wrong, and whoever sent it is in as before.
async function proving(path: string): Promise<boolean> {
  if (!/^\/api\/v1\/(login|setup|password|factor|recoverycodes)$/.test(path)) return false
  try { await send('GET', '/api/v1/whoami') } catch (e) { return !(e instanceof Fault && e.status === 401) }
  return true
}

export async function call<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
  const r = await send(method, path, body === undefined ? undefined : JSON.stringify(body), 'application/json', signal)
  return (r.status === 204 ? undefined : await r.json()) as T
}

export function query(path: string, params: Record<string, string | number | boolean | undefined>): string {
  const q = new URLSearchParams()
  for (const [k, v] of Object.entries(params)) if (v !== undefined && v !== '') q.set(k, String(v))
  const text = q.toString()
  return text ? `${path}?${text}` : path
}

export const get = <T,>(path: string, params: Record<string, string | number | boolean | undefined> = {}, signal?: AbortSignal) => call<T>('GET', query(path, params), undefined, signal)
export const find = <T = Thing,>(params: Record<string, string | number | undefined>, signal?: AbortSignal) => get<Found<T>>('/api/v1/search', { tenant: '*', ...params }, signal)
export const apply = async (yaml: string, dryRun: boolean) => (await (await send('POST', query('/api/v1/apply', { dryRun: dryRun || undefined }), yaml, 'application/yaml')).json() as { results: ApplyResult[] }).results
