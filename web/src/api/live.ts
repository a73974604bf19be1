// Hears from the core which kinds changed, and has what shows them asked for anew.
import { useSyncExternalStore } from 'react'
import type { QueryClient } from '@tanstack/react-query'
import { Fault, send, session } from './client'

export type LinkState = 'live' | 'connecting' | 'away'
let state: LinkState = 'connecting'
let since = Date.now()
const listeners = new Set<() => void>()
function become(s: LinkState) {
  if (s === state) return
  if (state === 'live' || s === 'live') since = Date.now()
  state = s
  listeners.forEach((f) => f())
}
export const useLink = () => useSyncExternalStore((f) => { listeners.add(f); return () => { listeners.delete(f) } }, () => state)
export const linkSince = () => since

// events reads server-sent events (WHATWG HTML, section 9.2) from an answer.
export async function* events(r: Response): AsyncGenerator<{ event: string; data: string } | null> {
  const reader = r.body!.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    rest += value
    for (let cut = rest.indexOf('\n\n'); cut >= 0; cut = rest.indexOf('\n\n')) {
      const lines = rest.slice(0, cut).split('\n')
      rest = rest.slice(cut + 2)
      const field = (name: string) => lines.filter((l) => l.startsWith(name + ': ')).map((l) => l.slice(name.length + 2)).join('\n')
      yield lines.some((l) => l.startsWith('data: ')) ? { event: field('event') || 'message', data: field('data') } : null
    }
  }
}

// A beat comes every fifteen seconds; silence for longer is a dead connection.
const silence = 40_000

export function follow(client: QueryClient): () => void {
  const ended = new AbortController()
  let revision = 0
  void (async () => {
    for (let wait = 500; !ended.signal.aborted;) {
      const once = new AbortController()
      const stop = () => once.abort()
      ended.signal.addEventListener('abort', stop)
      let timer = setTimeout(stop, silence)
      try {
        const r = await send('GET', '/api/v1/changes', undefined, undefined, once.signal)
        for await (const e of events(r)) {
          clearTimeout(timer)
          timer = setTimeout(stop, silence)
          if (e === null) continue
          const note = JSON.parse(e.data) as { kinds?: string[]; revision?: number; message?: string }
          if (e.event !== 'changed') break
          if (state !== 'live' && revision > 0) void client.invalidateQueries() // what changed meanwhile was not heard
          become('live')
          wait = 500
          revision = note.revision ?? revision
          for (const kind of note.kinds ?? []) void client.invalidateQueries({ predicate: (q) => (q.meta?.kinds as string[] | undefined)?.includes(kind) ?? false })
        }
      } catch (err) {
        if (err instanceof Fault && err.status === 401) return
      } finally {
        clearTimeout(timer)
        ended.signal.removeEventListener('abort', stop)
      }
      if (ended.signal.aborted || !session.on()) return
      become(state === 'live' ? 'connecting' : 'away')
      await new Promise((f) => setTimeout(f, wait))
      wait = Math.min(wait * 2, 8000)
    }
  })()
  return () => ended.abort()
}
