import { Alert, Button, Card, CardBody, CardTitle, DescriptionList, DescriptionListDescription, DescriptionListGroup, DescriptionListTerm, Form, Grid, GridItem, Label, Modal, ModalBody, ModalFooter, ModalHeader, PageSection } from '@patternfly/react-core'
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { useState, type ReactNode } from 'react'
import { call, get, session, type Person, type Session, type Who } from '../api/client'
import { t, type Key } from '../i18n'
import { Ago, Empty, Head, Loading, Problem, Shown } from '../ui/bits'
import { asksCode, Code, Once, Password, QR, Wrong } from '../ui/secret'
import { Sheet } from '../ui/sheet'
import { leave } from '../app'

export default function Account() {
  const who = useQuery({ queryKey: ['whoami'], queryFn: () => get<Who>('/api/v1/whoami'), meta: { kinds: ['RoleBinding', 'ServiceAccount'] } })
  return (
    <>
      <Head title={t('account.title')}>{who.data && <div className="sub"><b>{who.data.name}</b><span className="dim">{t('user.roles', { roles: who.data.role })}</span></div>}</Head>
      <PageSection>
        {who.data ? who.data.person ? <Mine who={who.data} /> : <Empty title={t('account.token')} body={t('account.token.body', { name: who.data.account })} /> : who.error ? <Problem error={who.error} again={() => { void who.refetch() }} /> : <Loading />}
      </PageSection>
    </>
  )
}

// usePerson is what the core tells about the person: to administrators at any time, to others at login; null when neither is known.
function usePerson(who: Who) {
  const asks = who.bindings.some((b) => b.role === 'platform-admin' && b.tenant === 'platform')
  return useQuery({ queryKey: ['people', who.person, asks], queryFn: async ({ signal }) => {
    if (asks) session.remember(await get<Person>(`/api/v1/people/${who.person}`, {}, signal))
    const p = session.person()
    return p?.uid === who.person ? p : null
  } })
}

type Doing = '' | 'password' | 'factor' | 'codes' | 'drop'

function Mine({ who }: { who: Who }) {
  const client = useQueryClient()
  const person = usePerson(who)
  const [doing, setDoing] = useState<Doing>('')
  const [said, setSaid] = useState<Key | ''>('')
  const p = person.data
  const changed = (to: Partial<Person>, say: Key | '') => {
    if (p) session.remember({ ...p, ...to })
    setSaid(say)
    void client.invalidateQueries({ queryKey: ['people'] })
  }
  const close = () => setDoing('')
  const begin = (d: Doing) => { setSaid(''); setDoing(d) }
  const state = (on: boolean | undefined) => on === undefined ? t('account.unknown') : <Label isCompact color={on ? 'green' : 'orange'}>{t(on ? 'account.on' : 'account.off')}</Label>
  const row = (term: Key, value: ReactNode) => <DescriptionListGroup><DescriptionListTerm>{t(term)}</DescriptionListTerm><DescriptionListDescription>{value}</DescriptionListDescription></DescriptionListGroup>
  return (
    <>
      <div aria-live="polite">{said && <Alert component="p" isInline variant="success" title={t(said)} className="finding" />}</div>
      <Grid hasGutter>
        <GridItem md={6}><Card isFullHeight><CardTitle component="h2">{t('account.who')}</CardTitle><CardBody>
          <DescriptionList isHorizontal isCompact>{row('login.name', who.name)}{p?.name && row('people.name', p.name)}{p?.email && row('people.email', p.email)}{row('people.uid', <code>{who.person}</code>)}</DescriptionList>
          <div className="acts account-acts"><Button variant="secondary" onClick={() => begin('password')}>{t('account.password')}</Button></div>
        </CardBody></Card></GridItem>
        <GridItem md={6}><Card isFullHeight><CardTitle component="h2">{t('factor.title')}</CardTitle><CardBody>
          <p className="dim finding">{t('factor.lead')}</p>
          <DescriptionList isHorizontal isCompact>{row('factor.state', state(p?.secondFactor))}{p?.secondFactor && row('factor.codes.left', String(p.recoveryCodes))}</DescriptionList>
          <div className="acts account-acts">
            <Button variant={p?.secondFactor ? 'secondary' : 'primary'} onClick={() => begin('factor')}>{t(p?.secondFactor ? 'factor.again' : 'factor.begin')}</Button>
            {p?.secondFactor !== false && <><Button variant="secondary" onClick={() => begin('codes')}>{t('factor.codes.new')}</Button><Button variant="link" isDanger onClick={() => begin('drop')}>{t('factor.drop')}</Button></>}
          </div>
        </CardBody></Card></GridItem>
        <GridItem span={12}><Sessions /></GridItem>
      </Grid>
      {doing === 'password' && <NewPassword close={close} />}
      {doing === 'factor' && <SetUp close={close} done={(n) => changed({ secondFactor: true, recoveryCodes: n }, 'factor.done')} />}
      {doing === 'codes' && <Renew close={close} done={(n) => changed({ secondFactor: true, recoveryCodes: n }, '')} />}
      {doing === 'drop' && <Drop close={close} done={() => { changed({ secondFactor: false, recoveryCodes: 0 }, 'factor.dropped'); close() }} />}
    </>
  )
}

// useProof has somebody prove once more who they are: by their password, and by a code once the core asks for one.
function useProof<T>(what: (proof: { password: string; code?: string }) => Promise<T>, done: (r: T) => void) {
  const [v, set] = useState({ password: '', code: '' })
  const [asked, setAsked] = useState(false)
  const go = useMutation({ mutationFn: () => what({ password: v.password, ...(asked ? { code: v.code } : {}) }), onSuccess: done, onError: (e) => { if (asksCode(e)) setAsked(true) } })
  const fields = (
    <>
      <Password id="proof" label={t('account.password.now')} value={v.password} set={(password) => set({ ...v, password })} autoComplete="current-password" autoFocus />
      {asked && <Code id="proof-code" value={v.code} set={(code) => set({ ...v, code })} />}
    </>
  )
  return { go, fields, ready: v.password !== '' && (!asked || v.code.trim() !== '') }
}

function Ask({ title, body, close, children, submit, verb, busy, off, danger, error }: { title: string; body?: string; close: () => void; children: ReactNode; submit: () => void; verb: string; busy: boolean; off: boolean; danger?: boolean; error: unknown }) {
  return (
    <Modal isOpen variant="small" onClose={close} aria-label={title}>
      <ModalHeader title={title} description={body} />
      <ModalBody><Wrong error={error} /><Form id="ask" onSubmit={(e) => { e.preventDefault(); if (!off && !busy) submit() }}>{children}</Form></ModalBody>
      <ModalFooter><Button type="submit" form="ask" variant={danger ? 'danger' : 'primary'} isLoading={busy} isDisabled={off || busy}>{verb}</Button><Button variant="link" onClick={close}>{t('act.cancel')}</Button></ModalFooter>
    </Modal>
  )
}

function NewPassword({ close }: { close: () => void }) {
  const [to, setTo] = useState('')
  const proof = useProof((p) => call('POST', '/api/v1/password', { ...p, new: to }), () => session.end('changed'))
  return (
    <Ask title={t('account.password')} body={t('account.password.body')} close={close} submit={() => proof.go.mutate()} verb={t('account.password')} busy={proof.go.isPending} off={!proof.ready || to === ''} error={proof.go.error}>
      {proof.fields}
      <Password id="new" label={t('login.new')} help={t('login.new.help')} value={to} set={setTo} autoComplete="new-password" />
    </Ask>
  )
}

// SetUp is three steps: prove, read the secret into an authenticator and type its code, keep the recovery codes.
function SetUp({ close, done }: { close: () => void; done: (codes: number) => void }) {
  const [factor, setFactor] = useState<{ secret: string; uri: string }>()
  const [code, setCode] = useState('')
  const proof = useProof((p) => call<{ secret: string; uri: string }>('POST', '/api/v1/factor', p), setFactor)
  const confirm = useMutation({ mutationFn: () => call<{ recoveryCodes: string[] }>('PUT', '/api/v1/factor', { code: code.trim() }), onSuccess: (r) => done(r.recoveryCodes.length), onError: () => setCode('') })
  if (confirm.data) return <Codes codes={confirm.data.recoveryCodes} close={close} />
  if (!factor) return <Ask title={t('factor.begin')} body={t('account.prove')} close={close} submit={() => proof.go.mutate()} verb={t('act.next')} busy={proof.go.isPending} off={!proof.ready} error={proof.go.error}>{proof.fields}</Ask>
  return (
    <Ask title={t('factor.begin')} body={t('factor.scan')} close={close} submit={() => confirm.mutate()} verb={t('factor.confirm')} busy={confirm.isPending} off={code.trim() === ''} error={confirm.error}>
      <QR text={factor.uri} label={t('factor.qr')} />
      <Once label={t('factor.secret')} text={factor.secret} />
      <Code id="confirm" value={code} set={setCode} recovery={false} />
    </Ask>
  )
}

function Renew({ close, done }: { close: () => void; done: (codes: number) => void }) {
  const proof = useProof((p) => call<{ recoveryCodes: string[] }>('POST', '/api/v1/recoverycodes', p), (r) => done(r.recoveryCodes.length))
  if (proof.go.data) return <Codes codes={proof.go.data.recoveryCodes} close={close} />
  return <Ask title={t('factor.codes.new')} body={t('factor.codes.new.body')} close={close} submit={() => proof.go.mutate()} verb={t('factor.codes.new')} busy={proof.go.isPending} off={!proof.ready} error={proof.go.error}>{proof.fields}</Ask>
}

function Drop({ close, done }: { close: () => void; done: () => void }) {
  const proof = useProof((p) => call('DELETE', '/api/v1/factor', p), done)
  return <Ask title={t('factor.drop')} body={t('account.prove')} close={close} submit={() => proof.go.mutate()} verb={t('factor.drop')} busy={proof.go.isPending} off={!proof.ready} danger error={proof.go.error}>{proof.fields}</Ask>
}

// Codes shows recovery codes; a click beside does not take them away.
function Codes({ codes, close }: { codes: string[]; close: () => void }) {
  const [copied, setCopied] = useState(false)
  return (
    <Modal isOpen variant="small" aria-label={t('factor.codes')}>
      <ModalHeader title={t('factor.codes')} description={t('factor.codes.body')} />
      <ModalBody><ul className="codes">{codes.map((c) => <li key={c}><code>{c}</code></li>)}</ul></ModalBody>
      <ModalFooter><Button onClick={close}>{t('factor.codes.kept')}</Button><Button variant="secondary" onClick={() => { void navigator.clipboard.writeText(codes.join('\n')).then(() => setCopied(true)) }}>{t(copied ? 'act.copied' : 'act.copy')}</Button></ModalFooter>
    </Modal>
  )
}

// agent is what people call what they log in by.
function agent(text = ''): string {
  const is = (...names: [string, string][]) => names.find(([part]) => text.includes(part))?.[1]
  const browser = is(['edgectl', 'edgectl'], ['Firefox/', 'Firefox'], ['Edg/', 'Edge'], ['Chrome/', 'Chrome'], ['Safari/', 'Safari'])
  return [browser ?? text, browser && is(['Android', 'Android'], ['iPhone', 'iPhone'], ['Windows', 'Windows'], ['Mac OS', 'macOS'], ['Linux', 'Linux'])].filter(Boolean).join(', ') || t('dash')
}

function Sessions() {
  const client = useQueryClient()
  const all = useQuery({ queryKey: ['sessions'], queryFn: ({ signal }) => get<{ items: Session[] | null }>('/api/v1/sessions', {}, signal) })
  const end = useMutation({ mutationFn: (s: Session) => s.current ? leave() : call('DELETE', `/api/v1/sessions/${encodeURIComponent(s.id)}`), onSuccess: () => client.invalidateQueries({ queryKey: ['sessions'] }) })
  return (
    <Card><CardTitle component="h2">{t('sessions.title')}</CardTitle><CardBody>
      <Wrong error={end.error} />
      <Shown of={all}>{(l) => (
        <Sheet label={t('sessions.title')} head={[t('sessions.agent'), t('col.address'), t('sessions.how'), t('sessions.began'), t('sessions.seen'), t('sessions.ends'), t('col.actions')]} rows={(l.items ?? []).map((s) => [s.id, [
          <span key="a" className="sub-inline" title={s.agent}>{agent(s.agent)} {s.current && <Label isCompact color="blue">{t('sessions.this')}</Label>}</span>, <code key="f">{s.address}</code>, s.how === 'password' ? t('login.password') : s.how,
          <Ago key="b" time={s.created} />, <Ago key="s" time={s.seen} />, <span key="e" className="nowrap">{new Date(s.ends).toLocaleString()}</span>,
          <Button key="x" size="sm" variant="link" isInline isLoading={end.isPending && end.variables.id === s.id} onClick={() => end.mutate(s)}>{s.current ? t('user.leave') : t('sessions.end')}</Button>,
        ]])} />
      )}</Shown>
    </CardBody></Card>
  )
}
