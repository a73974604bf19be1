// Frames of a stream into a device over a WebSocket: one byte type, three bytes length, then the payload.
import { faultOf, query, session, type Fault } from './client'

export const Frame = { stdin: 1, stdout: 2, stderr: 3, closeStdin: 4, resize: 5, exit: 6, failure: 7, ping: 8 } as const
const largest = 32 << 10

export interface Ends { data(bytes: Uint8Array, err: boolean): void; exit(code: number): void; failed(f: Fault | null): void; opened?(): void }
export interface Stream { type(bytes: Uint8Array): void; resize(columns: number, rows: number): void; close(): void }

export function encode(type: number, payload: Uint8Array): Uint8Array<ArrayBuffer> {
  const b = new Uint8Array(4 + payload.length)
  new DataView(b.buffer).setUint32(0, (type << 24) | payload.length)
  b.set(payload, 4)
  return b
}

// decoder joins messages, which are cut anywhere, into frames.
export function decoder(take: (type: number, payload: Uint8Array) => void): (message: Uint8Array) => void {
  let rest = new Uint8Array(0)
  return (message) => {
    const all = new Uint8Array(rest.length + message.length)
    all.set(rest)
    all.set(message, rest.length)
    let at = 0
    while (all.length - at >= 4) {
      const head = new DataView(all.buffer, at).getUint32(0)
      const length = head & 0xffffff
      if (length > largest) throw new Error(`a frame of ${length} bytes`)
      if (all.length - at - 4 < length) break
      take(head >>> 24, all.subarray(at + 4, at + 4 + length))
      at += 4 + length
    }
    rest = all.slice(at)
  }
}

export function open(tenant: string, device: string, verb: string, params: Record<string, string | number | boolean | undefined>, argv: string[], ends: Ends): Stream {
  let address = query(`/api/v1/devices/${encodeURIComponent(device)}/${verb}`, { tenant, ...params })
  for (const a of argv) address += `&argv=${encodeURIComponent(a)}`
  const socket = new WebSocket(location.origin.replace(/^http/, 'ws') + address, session.token() ? ['tributary-stream', `bearer.${session.token()}`] : 'tributary-stream')
  socket.binaryType = 'arraybuffer'
  let over = false
  const end = (f: () => void) => { if (!over) { over = true; f() } socket.close() }
  const say = (type: number, payload: Uint8Array) => { if (socket.readyState === WebSocket.OPEN) socket.send(encode(type, payload)) }
  const ping = setInterval(() => say(Frame.ping, new Uint8Array(0)), 20_000)
  const decode = decoder((type, payload) => {
    if (type === Frame.stdout || type === Frame.stderr) ends.data(payload, type === Frame.stderr)
    if (type === Frame.exit) end(() => ends.exit(new DataView(payload.buffer, payload.byteOffset).getInt32(0)))
    if (type === Frame.failure) end(() => ends.failed(faultOf(0, JSON.parse(new TextDecoder().decode(payload)) as object)))
  })
  socket.onopen = () => ends.opened?.()
  socket.onmessage = (m) => { decode(new Uint8Array(m.data as ArrayBuffer)) }
  socket.onclose = () => { clearInterval(ping); if (!over) { over = true; ends.failed(null) } }
  return {
    type(bytes) { for (let at = 0; at < bytes.length; at += largest) say(Frame.stdin, bytes.subarray(at, at + largest)) },
    resize(columns, rows) { const b = new Uint8Array(4); const v = new DataView(b.buffer); v.setUint16(0, columns); v.setUint16(2, rows); say(Frame.resize, b) },
    close() { over = true; clearInterval(ping); socket.close() },
  }
}
