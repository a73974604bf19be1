import { Alert, Button, Card, CardBody, Form, FormGroup, FormHelperText, HelperText, HelperTextItem, TextInput, Title } from '@patternfly/react-core'
import { useEffect, useState } from 'react'
import { call, Fault, session } from '../api/client'
import { t } from '../i18n'
import mark from '../mark.svg'
import { Switches } from '../app'

export function Login({ entered, dark, switchDark }: { entered: () => void; dark: boolean; switchDark: () => void }) {
  const [token, setToken] = useState('')
  const [fault, setFault] = useState('')
  const [busy, setBusy] = useState(false)
  useEffect(() => { document.title = `${t('login.title')} · ${t('app.name')}` })
  const submit = async () => {
    setBusy(true)
    session.begin(token.trim())
    try {
      await call('GET', '/api/v1/whoami')
      entered()
    } catch (e) {
      session.end()
      setFault(e instanceof Fault ? (e.status === 401 ? t('login.bad') : e.message) : t('error.away'))
      setBusy(false)
    }
  }
  return (
    <main className="login">
      <div className="login-switch"><Switches dark={dark} switchDark={switchDark} /></div>
      <div className="login-brand"><img src={mark} alt="" width={72} /><Title headingLevel="h1" size="3xl">{t('app.name')}</Title><p>{t('login.lead')}</p></div>
      <Card className="login-card"><CardBody>
        <Title headingLevel="h2">{t('login.title')}</Title>
        {fault && <Alert component="p" isInline variant="danger" title={fault} />}
        <Form onSubmit={(e) => { e.preventDefault(); void submit() }}>
          <FormGroup label={t('login.token')} fieldId="token" isRequired>
            <TextInput id="token" type="password" autoComplete="current-password" value={token} onChange={(_, v) => setToken(v)} isRequired autoFocus />
            <FormHelperText><HelperText><HelperTextItem>{t('login.help')} {t('login.kept')}</HelperTextItem></HelperText></FormHelperText>
          </FormGroup>
          <Button type="submit" isBlock isLoading={busy} isDisabled={busy || token.trim() === ''}>{t('login.submit')}</Button>
        </Form>
      </CardBody></Card>
    </main>
  )
}
