// A browser with everything that must stay silent: errors of the page, breaches of its policy, answers of 500 and more.
import { chromium } from 'playwright-core'

export const core = process.env.CORE ?? 'https://127.0.0.1:8443'
export async function browser() {
  return await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--force-prefers-reduced-motion'] })
}
export const faults = []
export async function visit(b, { token, language = 'en', theme = 'light', quiet = [] } = {}) {
  const context = await b.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1440, height: 900 }, locale: language === 'zh' ? 'zh-CN' : 'en-GB', colorScheme: theme })
  await context.addInitScript(([token, language, theme]) => {
    if (token) sessionStorage.setItem('tributary.token', token)
    if (!localStorage.getItem('tributary.language')) localStorage.setItem('tributary.language', language)
    localStorage.setItem('tributary.theme', theme)
  }, [token, language, theme])
  const page = await context.newPage()
  const note = (text) => { if (!quiet.some((q) => q.test(text))) faults.push(`${page.url()}: ${text}`) }
  page.on('pageerror', (e) => note(`error: ${e.message}`))
  page.on('console', (m) => { if (m.type() === 'error') note(`console: ${m.text()}`) })
  page.on('response', (r) => { if (r.status() >= 500) note(`${r.status()} ${r.url()}`) })
  return page
}
// The pages, each with what must be on it before it is judged.
export const pages = (device) => [
  ['overview', '/'], ['devices', '/devices'], ['devices-filtered', '/devices?state=healthy,offline,degraded,critical&sort=-seen'], ['device', `/devices/default/${device}`], ['hardware', `/devices/default/${device}/hardware`], ['apps-of-device', `/devices/default/${device}/apps`],
  ['metrics', `/devices/default/${device}/metrics`], ['logs', `/devices/default/${device}/logs`], ['usage', `/devices/default/${device}/usage`], ['terminal', `/devices/default/${device}/terminal`], ['history-of-device', `/devices/default/${device}/history`], ['yaml', `/devices/default/${device}/yaml`],
  ['sites', '/sites'], ['fleets', '/fleets'], ['apps', '/apps'], ['library', '/library'], ['secrets', '/library/secrets'], ['edit-app', '/edit/App'], ['edit-fleet', '/edit/Fleet'], ['edit-site', '/edit/Site'], ['onboarding', '/onboarding'], ['accelerators', '/accelerators'], ['events', '/events'], ['rollouts', '/rollouts'], ['rollout', '/rollouts/default/door'], ['edit-rollout', '/edit/Rollout'], ['history', '/history/Config/default/door'], ['costs', '/costs'], ['costs-by-device', '/costs?by=device'], ['account', '/account'], ['people', '/people'], ['admin', '/admin'], ['incidents', '/incidents'], ['audit', '/audit'], ['audit-filtered', '/audit?actor=admin&kind=Config'], ['training', '/training'], ['training-job', '/training/default/kpis'], ['nothing', '/no/such/page'],
]
export async function settled(page) {
  await page.locator('h1').first().waitFor()
  await page.waitForFunction(() => !document.querySelector('.pf-v6-c-spinner'), null, { timeout: 15000 })
}
