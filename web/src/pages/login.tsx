import { Alert, Button, Card, CardBody, Content, Form, Spinner, Title } from '@patternfly/react-core'
import { useMutation, useQuery } from '@tanstack/react-query'
import { useEffect, useState, type ReactNode } from 'react'
import { useLocation, useNavigate } from 'react-router'
import { call, Fault, get, session, type LoggedIn, type Reason } from '../api/client'
import { t, type Key } from '../i18n'
import mark from '../mark.svg'
import { asksCode, Code, Field, Password, Wrong } from '../ui/secret'
import { Switches } from '../app'

// doors are the pages for who is not in yet, and for who is and comes by a link with a one-time token.
export const doors = ['/setup', '/invited']
const why: Partial<Record<Reason, Key>> = { ended: 'login.ended', out: 'login.out', changed: 'login.changed', unsure: 'login.unsure' }

// handed is the one-time token of a link: behind #, where no server and no log gets it. It is taken out of the address.
function handed(): string {
  const text = decodeURIComponent(location.hash.slice(1))
  if (text) history.replaceState(history.state, '', location.pathname)
  return text
}

export function Login({ entered, dark, switchDark }: { entered: () => void; dark: boolean; switchDark: () => void }) {
  const at = useLocation().pathname
  const go = useNavigate()
  const [byToken, setByToken] = useState(false)
  const [reason, setReason] = useState<Reason>(session.reason())
  const ways = useQuery({ queryKey: ['login'], queryFn: ({ signal }) => get<{ setup: boolean }>('/api/v1/login', {}, signal), enabled: !doors.includes(at), staleTime: 0 })
  const first = at === '/setup' || (at !== '/invited' && !byToken && ways.data?.setup === true)
  const title = t(first ? 'setup.title' : at === '/invited' ? 'invited.title' : 'login.title')
  useEffect(() => { document.title = `${title} · ${t('app.name')}` }, [title])
  const enter = () => { if (doors.includes(at)) void go('/', { replace: true }); entered() }
  const note = why[reason]
  const link = (text: Key, to: () => void) => <Button variant="link" isInline onClick={() => { setReason(''); to() }}>{t(text)}</Button>
  let form: ReactNode, others: ReactNode
  if (ways.isLoading && !byToken) form = <Spinner aria-label={t('load.title')} /> // which one is not known yet
  else if (first) {
    form = <Setup enter={enter} />
    others = <>{at === '/setup' && link('login.by.password', () => { void go('/') })}{link('login.by.token', () => { setByToken(true); if (at === '/setup') void go('/') })}</>
  } else if (at === '/invited') {
    form = <Invited done={() => { session.end('changed'); setReason('changed'); void go('/', { replace: true }) }} />
    others = link('login.by.password', () => { void go('/') })
  } else if (byToken) {
    form = <ByToken enter={enter} />
    others = link(ways.data?.setup ? 'setup.title' : 'login.by.password', () => setByToken(false))
  } else {
    form = <ByPassword enter={enter} tried={() => setReason('')} />
    others = <>{link('login.by.token', () => setByToken(true))}{link('login.by.invitation', () => { void go('/invited') })}</>
  }
  return (
    <main className="login">
      <div className="login-switch"><Switches dark={dark} switchDark={switchDark} /></div>
      <div className="login-brand"><img src={mark} alt="" width={72} /><Title headingLevel="h1" size="3xl">{t('app.name')}</Title><p>{t('login.lead')}</p></div>
      <Card className="login-card"><CardBody>
        <Title headingLevel="h2">{title}</Title>
        {note && at !== '/invited' && <Alert component="p" isInline variant={reason === 'unsure' ? 'warning' : reason === 'ended' ? 'info' : 'success'} title={t(note)} />}
        {ways.error && <Wrong error={ways.error} />}
        {form}
        <div className="login-others">{others}</div>
      </CardBody></Card>
    </main>
  )
}

const Go = ({ busy, off, children }: { busy: boolean; off: boolean; children: string }) => <Button type="submit" isBlock isLoading={busy} isDisabled={busy || off}>{children}</Button>

// ByPassword asks for name and password, and then, where there is a second factor, for a code.
function ByPassword({ enter, tried }: { enter: () => void; tried: () => void }) {
  const [v, set] = useState({ login: '', password: '', code: '' })
  const [asked, setAsked] = useState(false)
  const login = useMutation({
    mutationFn: () => call<LoggedIn>('POST', '/api/v1/login', { login: v.login, password: v.password, ...(asked ? { code: v.code } : {}) }),
    onMutate: tried,
    onSuccess: (r) => { session.enter(r.person); enter() },
    onError: (e) => { if (asksCode(e)) setAsked(true); else set({ ...v, ...(asked ? { code: '' } : { password: '' }) }) },
  })
  return (
    <>
      <Wrong error={login.error} />
      <Form onSubmit={(e) => { e.preventDefault(); login.mutate() }}>
        {asked ? <><Content component="p">{t('login.as', { name: v.login })}</Content><Code id="code" value={v.code} set={(code) => set({ ...v, code })} /></> : (
          <>
            <Field id="login" label={t('login.name')} value={v.login} set={(login) => set({ ...v, login })} isRequired autoFocus autoComplete="username" autoCapitalize="none" spellCheck="false" maxLength={64} />
            <Password id="password" label={t('login.password')} value={v.password} set={(password) => set({ ...v, password })} autoComplete="current-password" />
          </>
        )}
        <Go busy={login.isPending} off={v.login.trim() === '' || v.password === '' || (asked && v.code.trim() === '')}>{t('login.submit')}</Go>
        {asked && <Button variant="link" isBlock onClick={() => { login.reset(); setAsked(false); set({ ...v, password: '', code: '' }) }}>{t('login.other')}</Button>}
      </Form>
    </>
  )
}

function ByToken({ enter }: { enter: () => void }) {
  const [token, setToken] = useState('')
  const login = useMutation({ mutationFn: async () => {
    session.begin(token.trim())
    try { await call('GET', '/api/v1/whoami') } catch (e) { session.end(''); throw e }
  }, onSuccess: enter })
  const bad = login.error instanceof Fault && login.error.status === 401
  return (
    <>
      {bad ? <Alert component="p" isInline variant="danger" title={t('login.bad')} role="alert" /> : <Wrong error={login.error} />}
      <Form onSubmit={(e) => { e.preventDefault(); login.mutate() }}>
        <Field id="token" label={t('login.token')} help={`${t('login.help')} ${t('login.kept')}`} type="password" autoComplete="off" value={token} set={setToken} isRequired autoFocus />
        <Go busy={login.isPending} off={token.trim() === ''}>{t('login.submit')}</Go>
      </Form>
    </>
  )
}

// Setup makes the first administrator, or by `cored admin-token` another.
function Setup({ enter }: { enter: () => void }) {
  const [v, set] = useState(() => ({ token: handed(), login: '', name: '', password: '' }))
  const setup = useMutation({ mutationFn: () => call<LoggedIn>('POST', '/api/v1/setup', { ...v, token: v.token.trim(), login: v.login.trim(), name: v.name.trim() || undefined }), onSuccess: (r) => { session.enter(r.person); enter() } })
  return (
    <>
      <Content component="p" className="dim">{t('setup.lead')}</Content>
      <Wrong error={setup.error} />
      <Form onSubmit={(e) => { e.preventDefault(); setup.mutate() }}>
        <Field id="once" label={t('setup.token')} help={t('setup.token.help')} type="password" autoComplete="off" value={v.token} set={(token) => set({ ...v, token })} isRequired autoFocus={v.token === ''} maxLength={200} />
        <Field id="login" label={t('login.name')} help={t('people.login.help')} value={v.login} set={(login) => set({ ...v, login })} isRequired autoFocus={v.token !== ''} autoComplete="username" autoCapitalize="none" spellCheck="false" maxLength={64} />
        <Field id="name" label={t('people.name')} value={v.name} set={(name) => set({ ...v, name })} autoComplete="name" maxLength={200} />
        <Password id="new" label={t('login.password')} help={t('login.new.help')} value={v.password} set={(password) => set({ ...v, password })} autoComplete="new-password" />
        <Go busy={setup.isPending} off={[v.token, v.login, v.password].some((x) => x.trim() === '')}>{t('setup.submit')}</Go>
      </Form>
    </>
  )
}

// Invited sets a password by what an administrator gave.
function Invited({ done }: { done: () => void }) {
  const [v, set] = useState(() => ({ token: handed(), new: '' }))
  const save = useMutation({ mutationFn: () => call('POST', '/api/v1/password', { token: v.token.trim(), new: v.new }), onSuccess: done })
  return (
    <>
      <Content component="p" className="dim">{t('invited.lead')}</Content>
      <Wrong error={save.error} />
      <Form onSubmit={(e) => { e.preventDefault(); save.mutate() }}>
        <Field id="once" label={t('setup.token')} type="password" autoComplete="off" value={v.token} set={(token) => set({ ...v, token })} isRequired autoFocus={v.token === ''} maxLength={200} />
        <Password id="new" label={t('login.new')} help={t('login.new.help')} value={v.new} set={(n) => set({ ...v, new: n })} autoComplete="new-password" autoFocus={v.token !== ''} />
        <Go busy={save.isPending} off={v.token.trim() === '' || v.new === ''}>{t('invited.submit')}</Go>
      </Form>
    </>
  )
}
