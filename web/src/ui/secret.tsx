// What forms about passwords and codes are made of.
import { Alert, Button, ClipboardCopy, FormGroup, FormHelperText, HelperText, HelperTextItem, InputGroup, InputGroupItem, TextInput, type TextInputProps } from '@patternfly/react-core'
import { EyeIcon, EyeSlashIcon } from '@patternfly/react-icons'
import { useState } from 'react'
import { encode } from 'uqr'
import { Fault } from '../api/client'
import { t } from '../i18n'

type FieldProps = Omit<TextInputProps, 'onChange' | 'label' | 'ref'> & { id: string; label: string; help?: string; value: string; set: (v: string) => void }

export function Field({ label, help, set, ...rest }: FieldProps) {
  return (
    <FormGroup label={label} fieldId={rest.id} isRequired={rest.isRequired}>
      <TextInput {...rest} onChange={(_, v) => set(v)} aria-describedby={help ? `${rest.id}-help` : undefined} />
      {help && <FormHelperText><HelperText><HelperTextItem id={`${rest.id}-help`}>{help}</HelperTextItem></HelperText></FormHelperText>}
    </FormGroup>
  )
}

// Password can be looked at by who types it.
export function Password({ label, help, set, ...rest }: FieldProps) {
  const [seen, setSeen] = useState(false)
  return (
    <FormGroup label={label} fieldId={rest.id} isRequired>
      <InputGroup>
        <InputGroupItem isFill><TextInput {...rest} isRequired type={seen ? 'text' : 'password'} maxLength={1024} onChange={(_, v) => set(v)} aria-describedby={help ? `${rest.id}-help` : undefined} /></InputGroupItem>
        <InputGroupItem><Button variant="control" aria-label={t(seen ? 'login.hide' : 'login.show')} icon={seen ? <EyeSlashIcon /> : <EyeIcon />} onClick={() => setSeen(!seen)} /></InputGroupItem>
      </InputGroup>
      {help && <FormHelperText><HelperText><HelperTextItem id={`${rest.id}-help`}>{help}</HelperTextItem></HelperText></FormHelperText>}
    </FormGroup>
  )
}

// Code is of the authenticator, or one that takes its place.
export const Code = ({ id, value, set, recovery = true }: { id: string; value: string; set: (v: string) => void; recovery?: boolean }) => (
  <Field id={id} label={t('login.code')} help={t(recovery ? 'login.code.help' : 'factor.code.help')} value={value} set={set} isRequired autoFocus autoComplete="one-time-code" inputMode={recovery ? 'text' : 'numeric'} maxLength={64} className="mono" spellCheck="false" />
)

// asksCode tells that all is right so far, and a code is wanted too.
export const asksCode = (e: unknown) => e instanceof Fault && e.status === 401 && e.field === 'code'

// Wrong says what is wrong with what somebody proved, or wants.
export function Wrong({ error }: { error: unknown }) {
  if (!error || asksCode(error)) return null
  const f = error instanceof Fault ? error : null
  const title = !f ? t('error.away') : f.status === 401 ? t(f.field === 'token' ? 'login.once' : 'login.wrong') : f.status === 429 ? t('login.wait') : f.message
  const more = f && f.status !== 401 ? [f.status === 429 ? f.message : '', f.remedy].filter(Boolean).join('. ') : f?.field === 'token' ? f.remedy : ''
  return <Alert component="p" isInline variant="danger" title={title} role="alert">{more}</Alert>
}

// Once shows what is shown now and never again.
export function Once({ label, text, help }: { label: string; text: string; help?: string }) {
  return (
    <FormGroup label={label} role="group">
      <ClipboardCopy isReadOnly isCode hoverTip={t('act.copy')} clickTip={t('act.copied')} textAriaLabel={label} toggleAriaLabel={label}>{text}</ClipboardCopy>
      {help && <FormHelperText><HelperText><HelperTextItem>{help}</HelperTextItem></HelperText></FormHelperText>}
    </FormGroup>
  )
}

// QR draws what an authenticator reads, dark on light in every theme, with the margin of four that ISO/IEC 18004 wants.
export function QR({ text, label }: { text: string; label: string }) {
  const { size, data } = encode(text, { ecc: 'M', border: 4 })
  const path = data.map((row, y) => row.map((on, x) => on ? `M${x} ${y}h1v1h-1z` : '').join('')).join('')
  return <svg className="qr" role="img" aria-label={label} viewBox={`0 0 ${size} ${size}`} shapeRendering="crispEdges"><rect width={size} height={size} fill="#fff" /><path d={path} fill="#000" /></svg>
}
