import { Button, Modal, ModalBody, ModalFooter, ModalHeader } from '@patternfly/react-core'
import { useMutation, useQueryClient } from '@tanstack/react-query'
import { useState, type ReactNode } from 'react'
import { call } from '../api/client'
import { t } from '../i18n'

// useOrder sends a request that changes something, and has everything that is shown read anew.
export function useOrder<T = unknown>(done?: (answer: T) => void) {
  const client = useQueryClient()
  return useMutation({ mutationFn: (o: { method?: string; path: string; body?: unknown }) => call<T>(o.method ?? 'POST', o.path, o.body), onSuccess: (answer) => { void client.invalidateQueries(); done?.(answer) } })
}

// Sure is a button that asks before it acts.
export function Sure({ label, title, children, acts, danger }: { label: string; title: string; children: ReactNode; acts: { label: string; danger?: boolean; act: () => void }[]; danger?: boolean }) {
  const [open, setOpen] = useState(false)
  return (
    <>
      <Button variant="secondary" isDanger={danger} onClick={() => setOpen(true)}>{label}</Button>
      {open && (
        <Modal isOpen variant="small" onClose={() => setOpen(false)} aria-label={title}>
          <ModalHeader title={title} />
          <ModalBody>{children}</ModalBody>
          <ModalFooter>
            {acts.map((a) => <Button key={a.label} variant={a.danger ? 'danger' : 'secondary'} onClick={() => { setOpen(false); a.act() }}>{a.label}</Button>)}
            <Button variant="link" onClick={() => setOpen(false)}>{t('act.cancel')}</Button>
          </ModalFooter>
        </Modal>
      )}
    </>
  )
}
