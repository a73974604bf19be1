import { Brand, Button, Masthead, MastheadBrand, MastheadContent, MastheadLogo, MastheadMain, MastheadToggle, Nav, NavGroup, NavItem, Page, PageSidebar, PageSidebarBody, PageToggleButton, SkipToContent, Toolbar, ToolbarContent, ToolbarGroup, ToolbarItem, Tooltip, Alert, Label, MenuToggle, Dropdown, DropdownItem, DropdownList } from '@patternfly/react-core'
import { BarsIcon, LanguageIcon, MoonIcon, SearchIcon, SunIcon, UserIcon } from '@patternfly/react-icons'
import { useQuery, useQueryClient } from '@tanstack/react-query'
import { lazy, Suspense, useEffect, useState } from 'react'
import { Navigate, NavLink, Route, Routes, useLocation, useNavigate } from 'react-router'
import { call, Fault, get, session, type Who } from './api/client'
import { follow, linkSince, useLink } from './api/live'
import { speak, t, useLanguage, type Key } from './i18n'
import mark from './mark.svg'
import { doors, Login } from './pages/login'
import { Palette } from './ui/palette'
import { ago, Head, Loading, Problem } from './ui/bits'

const Overview = lazy(() => import('./pages/overview'))
const Devices = lazy(() => import('./pages/devices'))
const DevicePage = lazy(() => import('./pages/device'))
const Sites = lazy(() => import('./pages/sites'))
const Fleets = lazy(() => import('./pages/fleets'))
const Apps = lazy(() => import('./pages/apps'))
const Library = lazy(() => import('./pages/library'))
const Rollouts = lazy(() => import('./pages/rollouts'))
const RolloutPage = lazy(() => import('./pages/rollout'))
const History = lazy(() => import('./pages/history'))
const Costs = lazy(() => import('./pages/costs'))
const InvoicePage = lazy(() => import('./pages/invoice'))
const Incidents = lazy(() => import('./pages/incidents'))
const IncidentPage = lazy(() => import('./pages/incident'))
const Audit = lazy(() => import('./pages/audit'))
const Training = lazy(() => import('./pages/training'))
const TrainingJobPage = lazy(() => import('./pages/trainingjob'))
const Edit = lazy(() => import('./pages/edit'))
const Onboarding = lazy(() => import('./pages/onboarding'))
const Accelerators = lazy(() => import('./pages/accelerators'))
const Events = lazy(() => import('./pages/events'))
const People = lazy(() => import('./pages/people'))
const Account = lazy(() => import('./pages/account'))
const Admin = lazy(() => import('./pages/admin'))

const nav: { title: Key; items: [string, Key][] }[] = [
  { title: 'nav.see', items: [['/', 'nav.overview'], ['/devices', 'nav.devices'], ['/sites', 'nav.sites'], ['/accelerators', 'nav.accelerators'], ['/incidents', 'nav.incidents'], ['/events', 'nav.events']] },
  { title: 'nav.run', items: [['/fleets', 'nav.fleets'], ['/apps', 'nav.apps'], ['/rollouts', 'nav.rollouts'], ['/library', 'nav.library'], ['/onboarding', 'nav.onboarding'], ['/training', 'nav.training']] },
  { title: 'nav.rule', items: [['/costs', 'nav.costs'], ['/people', 'nav.people'], ['/admin', 'nav.admin'], ['/audit', 'nav.audit']] },
]

const kept = localStorage.getItem('tributary.theme')
const wanted = () => kept === 'dark' || (kept !== 'light' && matchMedia('(prefers-color-scheme: dark)').matches)

function useDark(): [boolean, () => void] {
  const [dark, set] = useState(wanted)
  useEffect(() => { document.documentElement.classList.toggle('pf-v6-theme-dark', dark) }, [dark])
  return [dark, () => set((d) => { localStorage.setItem('tributary.theme', d ? 'light' : 'dark'); return !d })]
}

function LinkLabel() {
  const link = useLink()
  return <span role="status"><Label isCompact variant="outline" className={`link-${link}`} color={link === 'live' ? 'green' : link === 'connecting' ? 'blue' : 'red'}>{t(`link.${link}`)}</Label></span>
}

export function App() {
  const language = useLanguage()
  const [inside, setInside] = useState(session.on())
  const [dark, switchDark] = useDark()
  const client = useQueryClient()
  const at = useLocation()
  useEffect(() => session.onEnd(() => { client.clear(); setInside(session.on()) }), [client])
  if (!inside || doors.includes(at.pathname)) return <Login key={language} dark={dark} switchDark={switchDark} entered={() => { client.clear(); setInside(true) }} />
  return <Shell key={language} dark={dark} switchDark={switchDark} />
}

// leave ends the session at the core, not here alone: its cookie is out of the page's reach.
export async function leave() {
  let sure = true
  if (!session.token()) {
    try { await call('POST', '/api/v1/logout') } catch (e) { sure = e instanceof Fault && e.status === 401 }
  }
  session.end(sure ? 'out' : 'unsure')
}

function User({ who }: { who?: Who }) {
  const [open, setOpen] = useState(false)
  const go = useNavigate()
  return (
    <Dropdown isOpen={open} onSelect={() => setOpen(false)} onOpenChange={setOpen} popperProps={{ position: 'right' }} toggle={(ref) => <MenuToggle ref={ref} variant="plainText" isExpanded={open} onClick={() => setOpen(!open)} icon={<UserIcon />} aria-label={t('user.menu')}>{who?.name ?? ''}</MenuToggle>}>
      <DropdownList>
        {who && <DropdownItem isDisabled key="roles" description={who.account || who.person}>{t('user.roles', { roles: who.role })}</DropdownItem>}
        <DropdownItem key="account" onClick={() => { void go('/account') }}>{t('account.title')}</DropdownItem>
        <DropdownItem key="leave" onClick={() => { void leave() }}>{t('user.leave')}</DropdownItem>
      </DropdownList>
    </Dropdown>
  )
}

export function Switches({ dark, switchDark }: { dark: boolean; switchDark: () => void }) {
  const language = useLanguage()
  return (
    <>
      <Tooltip content={t('lang.switch')}><Button variant="plain" aria-label={t('lang.switch')} icon={<LanguageIcon />} onClick={() => speak(language === 'en' ? 'zh' : 'en')} /></Tooltip>
      <Tooltip content={t('theme.switch')}><Button variant="plain" aria-label={t('theme.switch')} icon={dark ? <SunIcon /> : <MoonIcon />} onClick={switchDark} /></Tooltip>
    </>
  )
}

function Shell({ dark, switchDark }: { dark: boolean; switchDark: () => void }) {
  const client = useQueryClient()
  const at = useLocation()
  const link = useLink()
  const [palette, setPalette] = useState(false)
  const who = useQuery({ queryKey: ['whoami'], queryFn: () => get<Who>('/api/v1/whoami'), meta: { kinds: ['RoleBinding', 'ServiceAccount'] } })
  useEffect(() => follow(client), [client])
  useEffect(() => {
    const key = (e: KeyboardEvent) => { if ((e.ctrlKey || e.metaKey) && e.key.toLowerCase() === 'k') { e.preventDefault(); setPalette(true) } }
    window.addEventListener('keydown', key)
    return () => window.removeEventListener('keydown', key)
  }, [])
  const header = (
    <Masthead>
      <MastheadMain>
        <MastheadToggle><PageToggleButton aria-label={t('nav.main')} icon={<BarsIcon />} /></MastheadToggle>
        <MastheadBrand><MastheadLogo component="span" className="brand"><Brand src={mark} alt="" widths={{ default: '28px' }} /><b>{t('app.name')}</b></MastheadLogo></MastheadBrand>
      </MastheadMain>
      <MastheadContent>
        <Toolbar isFullHeight isStatic>
          <ToolbarContent>
            <ToolbarItem className="grow"><Button variant="control" className="search-button" icon={<SearchIcon />} onClick={() => setPalette(true)}>{t('search.open')} <kbd>{t('search.keys')}</kbd></Button></ToolbarItem>
            <ToolbarGroup variant="action-group-plain" align={{ default: 'alignEnd' }}>
              <ToolbarItem className="mid"><LinkLabel /></ToolbarItem>
              <ToolbarItem><Switches dark={dark} switchDark={switchDark} /></ToolbarItem>
              <ToolbarItem><User who={who.data} /></ToolbarItem>
            </ToolbarGroup>
          </ToolbarContent>
        </Toolbar>
      </MastheadContent>
    </Masthead>
  )
  // Who has no role but billing sees what that is about.
  const biller = !!who.data?.bindings?.length && who.data.bindings.every((b) => b.role === 'billing')
  const shown = biller ? nav.map((g) => ({ ...g, items: g.items.filter(([to]) => to === '/costs') })).filter((g) => g.items.length > 0) : nav
  const here = (to: string) => to === '/' ? at.pathname === '/' : to === '/costs' && at.pathname.startsWith('/invoices') ? true : at.pathname.startsWith(to)
  const sidebar = (
    <PageSidebar><PageSidebarBody>
      <Nav aria-label={t('nav.main')}>
        {shown.map((g) => <NavGroup key={g.title} title={t(g.title)}>{g.items.map(([to, name]) => <NavItem key={to} isActive={here(to)}><NavLink to={to} end={to === '/'}>{t(name)}</NavLink></NavItem>)}</NavGroup>)}
      </Nav>
    </PageSidebarBody></PageSidebar>
  )
  return (
    <Page masthead={header} sidebar={sidebar} isManagedSidebar mainContainerId="main" skipToContent={<SkipToContent href="#main">{t('nav.skip')}</SkipToContent>}>
      {link === 'away' && <Alert component="p" isInline variant="warning" title={t('link.old', { ago: ago(linkSince()) })} />}
      <Suspense fallback={<Loading />}>
        <Routes>
          <Route path="/" element={who.isPending ? <Loading /> : biller ? <Navigate to="/costs" replace /> : <Overview />} />
          <Route path="/devices" element={<Devices />} />
          <Route path="/devices/:tenant/:name" element={<DevicePage />} />
          <Route path="/devices/:tenant/:name/:tab" element={<DevicePage />} />
          <Route path="/sites" element={<Sites />} />
          <Route path="/fleets" element={<Fleets />} />
          <Route path="/apps" element={<Apps />} />
          <Route path="/library" element={<Library />} />
          <Route path="/library/:plural" element={<Library />} />
          <Route path="/rollouts" element={<Rollouts />} />
          <Route path="/rollouts/:tenant/:name" element={<RolloutPage />} />
          <Route path="/history/:kind/:tenant/:name" element={<History />} />
          <Route path="/costs" element={<Costs />} />
          <Route path="/invoices/:number" element={<InvoicePage />} />
          <Route path="/incidents" element={<Incidents />} />
          <Route path="/incidents/:tenant/:name" element={<IncidentPage />} />
          <Route path="/audit" element={<Audit />} />
          <Route path="/training" element={<Training />} />
          <Route path="/training/:tenant/:name" element={<TrainingJobPage />} />
          <Route path="/edit/:kind" element={<Edit />} />
          <Route path="/edit/:kind/:tenant/:name" element={<Edit />} />
          <Route path="/onboarding" element={<Onboarding />} />
          <Route path="/accelerators" element={<Accelerators />} />
          <Route path="/events" element={<Events />} />
          <Route path="/people" element={<People />} />
          <Route path="/account" element={<Account />} />
          <Route path="/admin" element={<Admin />} />
          <Route path="*" element={<><Head title={t('missing.title')} /><Problem error={new Fault(404, 'not-found', at.pathname, '', '', [])} /></>} />
        </Routes>
      </Suspense>
      {palette && <Palette close={() => setPalette(false)} />}
    </Page>
  )
}
