import { Label, Modal, ModalBody, ModalHeader, SearchInput } from '@patternfly/react-core'
import { useQuery } from '@tanstack/react-query'
import { useEffect, useState } from 'react'
import { useNavigate } from 'react-router'
import { find } from '../api/client'
import { t } from '../i18n'
import { pathOf, StateLabel } from './bits'

// Palette searches everything that its reader may see, from anywhere.
export function Palette({ close }: { close: () => void }) {
  const [text, setText] = useState('')
  const [words, setWords] = useState('')
  const [at, setAt] = useState(0)
  const go = useNavigate()
  useEffect(() => { const i = setTimeout(() => setWords(text.trim()), 150); return () => clearTimeout(i) }, [text])
  const found = useQuery({ queryKey: ['palette', words], queryFn: ({ signal }) => find({ q: words, limit: 12 }, signal), enabled: words !== '', placeholderData: (old) => old })
  const hits = words ? found.data?.items ?? [] : []
  const pick = (i: number) => { const h = hits[i]; if (h) { close(); void go(pathOf(h.kind, h.tenant, h.name)) } }
  return (
    <Modal isOpen variant="medium" position="top" onClose={close} aria-label={t('search.title')}>
      <ModalHeader title={t('search.title')} />
      <ModalBody>
        <SearchInput autoFocus value={text} placeholder={t('search.hint')} aria-label={t('search.hint')} onChange={(_, v) => { setText(v); setAt(0) }} onClear={() => setText('')}
          onKeyDown={(e) => {
            if (e.key === 'ArrowDown') { e.preventDefault(); setAt(Math.min(at + 1, hits.length - 1)) }
            if (e.key === 'ArrowUp') { e.preventDefault(); setAt(Math.max(at - 1, 0)) }
            if (e.key === 'Enter') pick(at)
          }} />
        <ul className="hits" aria-label={t('search.results')} aria-live="polite">
          {hits.map((h, i) => (
            <li key={`${h.kind}/${h.tenant}/${h.name}`}><button type="button" className={i === at ? 'hit chosen' : 'hit'} onClick={() => pick(i)} onMouseEnter={() => setAt(i)}>
              <Label isCompact variant="outline">{h.kind}</Label><b>{h.name}</b><span className="dim">{h.tenant}{h.site ? ` · ${h.site}` : ''}</span><StateLabel state={h.state} />
            </button></li>
          ))}
        </ul>
        {words === '' && <p className="dim">{t('search.type')}</p>}
        {words !== '' && found.data?.total === 0 && <p className="dim">{t('search.none')}</p>}
        {found.data && found.data.total > hits.length && hits.length > 0 && <p className="dim">{t('over.more', { n: found.data.total - hits.length })}</p>}
      </ModalBody>
    </Modal>
  )
}
