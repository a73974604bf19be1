import { PageSection, SearchInput, Toolbar, ToolbarContent, ToolbarItem } from '@patternfly/react-core'
import { useQuery } from '@tanstack/react-query'
import { useState } from 'react'
import { get, type EventEntry } from '../api/client'
import { t } from '../i18n'
import { Head, Shown } from '../ui/bits'
import { EventList } from '../ui/eventlist'

export default function Events() {
  const [text, setText] = useState('')
  const events = useQuery({ queryKey: ['events', 300], queryFn: ({ signal }) => get<{ items: EventEntry[] }>('/api/v1/events', { tenant: '*', limit: 300 }, signal), refetchInterval: 2000 })
  const words = text.toLowerCase().split(/\s+/).filter(Boolean)
  const fits = (e: EventEntry) => { const all = [e.name, e.tenant, e.event.name, e.event.subject, e.event.message].join(' ').toLowerCase(); return words.every((w) => all.includes(w)) }
  return (
    <>
      <Head title={t('nav.events')} />
      <PageSection>
        <Toolbar><ToolbarContent><ToolbarItem><SearchInput value={text} aria-label={t('ev.filter')} placeholder={t('ev.filter')} onChange={(_, v) => setText(v)} onClear={() => setText('')} /></ToolbarItem></ToolbarContent></Toolbar>
        <Shown of={events}>{(e) => <EventList events={e.items.filter(fits)} />}</Shown>
      </PageSection>
    </>
  )
}
