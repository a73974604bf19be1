// Plays a person at the console, in a real browser against a real core with a real tree: the first login, a box that waits for
// approval, an app that is deployed, a terminal in it; then every page, by keyboard and for axe, and as every role.
import { AxeBuilder } from '@axe-core/playwright'
import fs from 'node:fs'
import path from 'node:path'
import { browser, core, faults, pages, settled, visit } from './browser.mjs'
import { firstLogin, others } from './login.mjs'

const token = process.env.TOKEN, setup = process.env.SETUP, device = process.env.DEVICE, waiting = process.env.WAITING, app = process.env.APP, screens = process.env.SCREENS
const roles = JSON.parse(process.env.ROLES ?? '{}')
const only = new RegExp(process.env.ONLY ?? '') // of the pages, for who works on some
const judged = pages(device).filter(([name]) => only.test(name))
const began = Date.now()
const say = (what) => console.log(`${((Date.now() - began) / 1000).toFixed(1)}s  ${what}`)
function fail(what) { throw new Error(what) }
// look keeps what a page looks like while it is done something with.
const look = async (page, name) => { if (screens) await page.screenshot({ path: path.join(screens, 'login', `${name}.png`) }) }
const b = await browser()

async function axe(page, where) {
  const { violations } = await new AxeBuilder({ page }).disableRules(['color-contrast']).exclude('.xterm').analyze()
  for (const v of violations) faults.push(`axe on ${where}: ${v.id}: ${v.help}: ${v.nodes.slice(0, 3).map((n) => n.target.join(' ')).join('; ')}`)
}

try {
  const p = await visit(b, { quiet: [/401/] })
  await p.goto(core)
  await p.getByRole('button', { name: 'Log in by a token' }).click()
  await p.getByLabel('Access token').fill('not-a-token')
  await p.getByRole('button', { name: 'Log in', exact: true }).click()
  await p.getByText('not known, or has expired').waitFor()
  await axe(p, 'token')
  await p.getByLabel('Access token').fill(token)
  await p.keyboard.press('Enter')
  await p.getByRole('heading', { name: 'Overview', level: 1 }).waitFor()
  await p.getByText('Live', { exact: true }).waitFor()
  if (setup) { // from here on it is a person, by the session of a cookie
    await p.getByRole('button', { name: 'Account', exact: true }).click()
    await p.getByRole('menuitem', { name: 'Log out' }).click()
    await p.getByText('You are logged out.').waitFor()
    const tools = { axe, say, fail, look }
    await firstLogin(p, setup, tools)
    await others(p, await visit(b, { quiet: [/status of 4\d\d/, /WebSocket .* 40[13]/] }), tools)
  }
  say('logged in')

  await p.goto(`${core}/onboarding`)
  await p.getByRole('button', { name: `Approve ${waiting}` }).click()
  await p.getByText(`${waiting} was approved`).waitFor()
  await p.getByText('No box waits for approval.').waitFor()
  say('approved a box that waited')

  if (app) {
    await p.goto(`${core}/edit/App`)
    const yaml = p.getByRole('textbox', { name: 'YAML' })
    await yaml.fill(fs.readFileSync(app, 'utf8'))
    if (await p.getByRole('button', { name: 'Apply', exact: true }).isEnabled()) fail('it can be applied without a plan')
    await p.getByRole('button', { name: 'Plan', exact: true }).click()
    await p.getByText('What would change').first().waitFor()
    await p.getByRole('button', { name: 'Apply', exact: true }).click()
    await p.getByText('Applied.').waitFor()
    say('planned and applied an app')
    await p.goto(`${core}/devices/default/${device}/apps`)
    await p.getByText('Running', { exact: true }).first().waitFor({ timeout: 120_000 })
    say('the app runs, and the page heard of it by itself')
    await p.goto(`${core}/devices/default/${device}/terminal`)
    await p.getByLabel('What to open').selectOption({ index: 0 })
    await p.getByRole('button', { name: 'Open', exact: true }).click()
    const typed = p.locator('.xterm-helper-textarea')
    await p.locator('.xterm-rows', { hasText: /[$#]/ }).waitFor({ timeout: 30_000 })
    await typed.focus()
    await p.keyboard.type('echo from-$((40+2))-here\n')
    await p.locator('.xterm-rows', { hasText: 'from-42-here' }).waitFor({ timeout: 30_000 })
    say('typed in a terminal')
    await p.getByRole('button', { name: 'Close', exact: true }).click()
  }

  await p.goto(core)
  await p.keyboard.press('Control+k')
  await p.getByRole('textbox', { name: 'A name, a label' }).fill(device)
  await p.locator('.hit', { hasText: device }).first().waitFor()
  await p.keyboard.press('Enter')
  await p.getByRole('heading', { name: device, level: 1 }).waitFor()
  say('found by Ctrl-K')

  for (const [name, at] of judged) {
    await p.goto(core + at)
    await settled(p)
    await axe(p, name)
  }
  say('every page is clean for axe')
  await p.context().close()

  for (const [role, token] of Object.entries(roles)) {
    const q = await visit(b, { token, quiet: [/status of 40[34]/, /WebSocket .* 403/] })
    for (const [name, at] of judged) {
      await q.goto(core + at)
      await settled(q)
      if (await q.getByText('This could not be read').count()) faults.push(`${role} on ${name}: it could not be read`)
    }
    await q.context().close()
    say(`every page as ${role}`)
  }

  if (screens) {
    for (const language of ['en', 'zh']) for (const theme of ['light', 'dark']) {
      const q = await visit(b, { token, language, theme })
      for (const [name, at] of judged) {
        await q.goto(core + at)
        await settled(q)
        await q.waitForLoadState('load')
        fs.mkdirSync(path.join(screens, `${language}-${theme}`), { recursive: true })
        await q.screenshot({ path: path.join(screens, `${language}-${theme}`, `${name}.png`), fullPage: true })
      }
      await q.context().close()
    }
    say(`screens in ${screens}`)
  }
} catch (e) {
  faults.push(String(e.stack ?? e))
} finally {
  await b.close()
}
for (const f of new Set(faults)) console.error(f)
process.exit(faults.length ? 1 : 0)
