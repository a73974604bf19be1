import { Button, Card, CardBody, Checkbox, Form, FormGroup, FormSelect, FormSelectOption, Grid, GridItem, TextInput } from '@patternfly/react-core'
import { FitAddon } from '@xterm/addon-fit'
import { Terminal } from '@xterm/xterm'
import '@xterm/xterm/css/xterm.css'
import { useCallback, useEffect, useRef, useState } from 'react'
import uPlot from 'uplot'
import 'uplot/dist/uPlot.min.css'
import type { Device, Fault } from '../api/client'
import { open, type Stream } from '../api/stream'
import { t } from '../i18n'
import { Empty } from '../ui/bits'
import { withNonce } from '../ui/nonce'

const servicesOf = (d: Device) => (d.status?.apps ?? []).flatMap((a) => (a.services ?? []).map((s) => `${a.name}/${s.name}`))
const split = (s: string) => { const i = s.indexOf('/'); return { app: s.slice(0, i), service: s.slice(i + 1) } }
const endText = (f: Fault | null) => f ? [f.message, f.remedy].filter(Boolean).join('. ') : t('live.ended')

export default function Live({ what, device, tenant }: { what: 'metrics' | 'logs' | 'terminal'; device: Device; tenant: string }) {
  if (!device.status?.online) return <Empty title={t('live.away')} />
  if (what === 'metrics') return <Metrics tenant={tenant} name={device.metadata.name} />
  return what === 'logs' ? <Logs device={device} tenant={tenant} /> : <Shell device={device} tenant={tenant} />
}

// useTerminal gives an element in which a terminal lives.
function useTerminal(label: string, reads: boolean) {
  const at = useRef<HTMLDivElement>(null)
  const [terminal, set] = useState<Terminal | null>(null)
  useEffect(() => {
    if (!at.current) return
    const where = at.current
    const made = withNonce(() => {
      const x = new Terminal({ convertEol: !reads, cursorBlink: reads, disableStdin: !reads, fontFamily: 'ui-monospace, "Red Hat Mono", monospace', fontSize: 13, scrollback: 5000, screenReaderMode: true, theme: { background: '#151515', foreground: '#f2f2f2' } })
      const f = new FitAddon()
      x.loadAddon(f)
      x.open(where)
      f.fit()
      return { x, f }
    })
    made.x.textarea?.setAttribute('aria-label', label)
    const watch = new ResizeObserver(() => made.f.fit())
    watch.observe(where)
    set(made.x)
    return () => { watch.disconnect(); made.x.dispose(); set(null) }
  }, [label, reads])
  return { at, terminal }
}

function Logs({ device, tenant }: { device: Device; tenant: string }) {
  const services = servicesOf(device)
  const [of, setOf] = useState(services[0] ?? '')
  const [follow, setFollow] = useState(true)
  const name = device.metadata.name
  const { at, terminal } = useTerminal(t('tab.logs'), false)
  useEffect(() => {
    if (!terminal || !of) return
    terminal.reset()
    const s = open(tenant, name, 'logs', { ...split(of), follow, tail: 200 }, [], { data: (b) => terminal.write(b), exit: () => terminal.writeln(`\u001b[2m${t('live.ended')}\u001b[0m`), failed: (f) => terminal.writeln(`\u001b[33m${endText(f)}\u001b[0m`) })
    return () => s.close()
  }, [terminal, of, follow, tenant, name])
  if (services.length === 0) return <Empty title={t('live.noapps')} />
  return (
    <Card><CardBody>
      <div className="live-bar"><FormSelect id="service" aria-label={t('live.service')} value={of} onChange={(_, v) => setOf(v)}>{services.map((s) => <FormSelectOption key={s} value={s} label={s} />)}</FormSelect><Checkbox id="follow" label={t('live.follow')} isChecked={follow} onChange={(_, v) => setFollow(v)} /></div>
      <div className="terminal" ref={at} />
    </CardBody></Card>
  )
}

function Shell({ device, tenant }: { device: Device; tenant: string }) {
  const services = servicesOf(device)
  const [what, setWhat] = useState(services[0] ?? 'console')
  const [command, setCommand] = useState('/bin/sh')
  const [running, setRunning] = useState(false)
  const [said, setSaid] = useState('')
  const stream = useRef<Stream | null>(null)
  const name = device.metadata.name
  const { at, terminal } = useTerminal(t('live.terminal', { name }), true)
  useEffect(() => () => stream.current?.close(), [])
  const begin = useCallback(() => {
    if (!terminal) return
    stream.current?.close()
    terminal.reset()
    setRunning(true)
    setSaid(t('live.connecting'))
    const size = { tty: true, columns: terminal.cols, rows: terminal.rows }
    const over = (text: string) => { setRunning(false); setSaid(text); stream.current = null }
    const ends = { data: (b: Uint8Array) => { setSaid(''); terminal.write(b) }, exit: (code: number) => over(t('live.exit', { code })), failed: (f: Fault | null) => over(endText(f)) }
    const s = what === 'console' ? open(tenant, name, 'console', size, [], ends) : open(tenant, name, 'exec', { ...split(what), ...size }, command.split(' ').filter(Boolean), ends)
    stream.current = s
    terminal.focus()
  }, [terminal, tenant, name, what, command])
  useEffect(() => {
    if (!terminal) return
    const typed = terminal.onData((text) => stream.current?.type(new TextEncoder().encode(text)))
    const size = terminal.onResize(({ cols, rows }) => stream.current?.resize(cols, rows))
    return () => { typed.dispose(); size.dispose() }
  }, [terminal])
  return (
    <Card><CardBody>
      <Form isHorizontal={false} className="live-bar" onSubmit={(e) => { e.preventDefault(); begin() }}>
        <FormGroup label={t('live.what')} fieldId="what"><FormSelect id="what" value={what} onChange={(_, v) => setWhat(v)}>{services.map((s) => <FormSelectOption key={s} value={s} label={`${t('live.container')}: ${s}`} />)}<FormSelectOption value="console" label={t('live.recovery')} /></FormSelect></FormGroup>
        {what !== 'console' && <FormGroup label={t('live.shell')} fieldId="command"><TextInput id="command" value={command} onChange={(_, v) => setCommand(v)} /></FormGroup>}
        <div className="live-go">{running ? <Button variant="secondary" onClick={() => { stream.current?.close(); stream.current = null; setRunning(false); setSaid(t('live.ended')) }}>{t('live.close')}</Button> : <Button type="submit">{t('live.open')}</Button>}</div>
        <span className="dim live-said" role="status">{said}</span>
      </Form>
      <div className="terminal" ref={at} />
    </CardBody></Card>
  )
}

interface Sample { time: number; load: number; memoryBytes: number; memoryUsed: number; uses: { app: string; service: string; cpus: number; memoryBytes: number; rxPerSecond: number; txPerSecond: number }[] | null }
const colors = ['#0066cc', '#63993d', '#ca6c0f', '#5e40be', '#147878', '#a60000', '#b98412', '#876fd4']
const kept = 180

function Metrics({ tenant, name }: { tenant: string; name: string }) {
  const [samples, set] = useState<Sample[]>([])
  const [said, setSaid] = useState(t('live.connecting'))
  useEffect(() => {
    let rest = ''
    const s = open(tenant, name, 'top', { follow: true }, [], {
      data(b) {
        rest += new TextDecoder().decode(b)
        const whole = rest.split('\n')
        rest = whole.pop() ?? ''
        const more = whole.filter(Boolean).map((l) => JSON.parse(l) as Sample)
        if (more.length) { setSaid(''); set((old) => [...old, ...more].slice(-kept)) }
      },
      exit: () => setSaid(t('live.ended')), failed: (f) => setSaid(endText(f)),
    })
    return () => s.close()
  }, [tenant, name])
  const services = [...new Set(samples.flatMap((s) => (s.uses ?? []).map((u) => `${u.app}/${u.service}`)))].sort()
  const series = (pick: (u: NonNullable<Sample['uses']>[number]) => number) => services.map((name) => ({ name, values: samples.map((s) => { const u = (s.uses ?? []).find((x) => `${x.app}/${x.service}` === name); return u ? pick(u) : null }) }))
  const times = samples.map((s) => s.time / 1000)
  if (samples.length === 0) return <Empty title={said} />
  return (
    <>
      <span className="dim" role="status">{said}</span>
      <Grid hasGutter>
        <GridItem span={12} xl={6}><Chart title={t('live.cpu')} times={times} series={series((u) => u.cpus)} /></GridItem>
        <GridItem span={12} xl={6}><Chart title={t('live.mem')} times={times} series={series((u) => u.memoryBytes / 1048576)} /></GridItem>
        <GridItem span={12} xl={6}><Chart title={t('live.net')} times={times} series={series((u) => (u.rxPerSecond + u.txPerSecond) / 1024)} /></GridItem>
        <GridItem span={12} xl={6}><Chart title={t('live.load')} times={times} series={[{ name: t('live.load'), values: samples.map((s) => s.load) }]} /></GridItem>
      </Grid>
    </>
  )
}

function Chart({ title, times, series }: { title: string; times: number[]; series: { name: string; values: (number | null)[] }[] }) {
  const at = useRef<HTMLDivElement>(null)
  const plot = useRef<uPlot | null>(null)
  const names = series.map((s) => s.name).join('\n')
  useEffect(() => {
    if (!at.current) return
    const where = at.current
    const ink = getComputedStyle(where).color
    const grid = { stroke: 'rgba(128,128,128,0.2)' }
    plot.current = new uPlot({ width: where.clientWidth || 400, height: 200, title, axes: [{ stroke: ink, grid }, { stroke: ink, grid }], series: [{}, ...names.split('\n').filter(Boolean).map((n, i) => ({ label: n, stroke: colors[i % colors.length], width: 2 }))] }, [[]], where)
    const watch = new ResizeObserver(() => plot.current?.setSize({ width: where.clientWidth, height: 200 }))
    watch.observe(where)
    return () => { watch.disconnect(); plot.current?.destroy(); plot.current = null }
  }, [title, names])
  useEffect(() => { plot.current?.setData([times, ...series.map((s) => s.values)] as uPlot.AlignedData) })
  return <Card><CardBody><div className="chart" ref={at} role="img" aria-label={title} /></CardBody></Card>
}
