// The first login of a core, and what somebody does with their own account and an administrator with others'.
import { createHmac } from 'node:crypto'
import { core } from './browser.mjs'

// totp is a code of now (RFC 6238).
function totp(secret) {
  const bits = [...secret].map((c) => 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567'.indexOf(c).toString(2).padStart(5, '0')).join('')
  const key = Buffer.from(bits.match(/.{8}/g).map((b) => parseInt(b, 2)))
  const step = Buffer.alloc(8)
  step.writeBigUInt64BE(BigInt(Math.floor(Date.now() / 30_000)))
  const sum = createHmac('sha1', key).update(step).digest()
  return String((sum.readUInt32BE(sum[19] & 15) & 0x7fffffff) % 1_000_000).padStart(6, '0')
}

const heading = (p, name, level = 1) => p.getByRole('heading', { name, level, exact: true }).waitFor()
async function secretIn(p, name, password) {
  await p.getByRole('textbox', { name: 'Name', exact: true }).fill(name)
  await p.getByLabel(/^Password/).fill(password)
  await p.keyboard.press('Enter')
}
async function menu(p, item) {
  await p.getByRole('button', { name: 'Account', exact: true }).click()
  await p.getByRole('menuitem', { name: item }).click()
}

// firstLogin goes on with a page that was never in, and leaves it in by a session whose secret no script can read.
export async function firstLogin(p, once, { axe, say, fail, look = async () => {} }) {
  const [name, password] = ['root', 'correct horse battery']
  await p.goto(`${core}/events`)
  await heading(p, 'The first administrator', 2)
  await axe(p, 'setup')
  await look(p, 'setup')
  await p.getByLabel('One-time token').fill('not-a-token')
  await secretIn(p, name, password)
  await p.getByText('not known, was used, or has expired').waitFor()
  await p.getByLabel('One-time token').fill(once)
  await p.keyboard.press('Enter')
  await heading(p, 'Events')
  await p.getByText('Live', { exact: true }).waitFor()
  if (await p.evaluate(() => document.cookie !== '' || sessionStorage.getItem('tributary.token') !== null)) fail('a script can read what carries the session')
  say('the first administrator made themselves by the one-time token, and is where they wanted to be')

  await menu(p, 'Your account')
  await heading(p, 'Your account')
  await p.getByText('this one', { exact: true }).waitFor()
  await axe(p, 'account')
  await look(p, 'account')
  await p.getByRole('button', { name: 'Set up an authenticator' }).click()
  await p.getByLabel('Password of now').fill('not the password')
  await p.keyboard.press('Enter')
  await p.getByText('Name, password or code is wrong.').waitFor()
  await p.getByLabel('Password of now').fill(password)
  await p.keyboard.press('Enter')
  await p.getByRole('img', { name: 'QR code' }).waitFor()
  await axe(p, 'factor')
  await look(p, 'factor')
  await p.getByRole('textbox', { name: 'Code', exact: true }).fill(totp(await p.getByRole('textbox', { name: 'Secret' }).inputValue()))
  await p.keyboard.press('Enter')
  await heading(p, 'Recovery codes')
  await look(p, 'codes')
  const codes = await p.locator('.codes li').allInnerTexts()
  await p.getByRole('button', { name: 'I have kept them' }).click()
  await p.getByText('The second factor counts').waitFor()
  say(`set up a second factor, and kept ${codes.length} recovery codes`)

  await menu(p, 'Log out')
  await p.getByText('You are logged out.').waitFor()
  if ((await p.context().cookies()).length) fail('the cookie is there after logging out')
  await look(p, 'login')
  await secretIn(p, name, password)
  await p.getByRole('textbox', { name: 'Code', exact: true }).waitFor()
  await axe(p, 'code')
  await look(p, 'code')
  await p.getByRole('textbox', { name: 'Code', exact: true }).fill('000000')
  await p.keyboard.press('Enter')
  await p.getByText('Name, password or code is wrong.').waitFor()
  await p.getByRole('textbox', { name: 'Code', exact: true }).fill(codes[0])
  await p.keyboard.press('Enter')
  await heading(p, 'Your account')
  await p.getByText(String(codes.length - 1), { exact: true }).waitFor()
  say('logged in by password and a recovery code')
  return { name, password, codes }
}

// others has the administrator let somebody in and put them out again.
export async function others(p, q, { axe, say, look = async () => {} }) {
  await p.goto(`${core}/people`)
  await p.getByRole('button', { name: 'Add a person' }).click()
  await p.getByRole('textbox', { name: 'Name', exact: true }).fill('bob')
  await p.getByRole('textbox', { name: 'Full name' }).fill('Bob B.')
  await p.keyboard.press('Enter')
  const link = await p.getByRole('textbox', { name: 'Link' }).inputValue()
  await axe(p, 'invitation')
  await look(p, 'invitation')
  await p.getByRole('button', { name: 'I have kept it' }).click()
  await p.getByText('No password yet').waitFor()

  await q.goto(link)
  await heading(q, 'Set a password', 2)
  if (q.url().includes('#')) throw new Error('the one-time token stays in the address')
  await axe(q, 'invited')
  await look(q, 'invited')
  await q.getByLabel('New password').fill('short')
  await q.keyboard.press('Enter')
  await q.getByText('12').first().waitFor()
  await q.getByLabel('New password').fill('bobs own long password')
  await q.keyboard.press('Enter')
  await q.getByText('The new password is set').waitFor()
  await secretIn(q, 'bob', 'bobs own long password')
  await heading(q, 'Overview')
  await q.goto(`${core}/account`)
  await q.getByText('this one', { exact: true }).waitFor()
  await q.goto(`${core}/people`)
  await q.getByText('Not yours to see').waitFor()
  say('somebody set a password by a link, is in, and sees no others')

  await p.reload()
  await look(p, 'people')
  await p.getByRole('button', { name: 'Disable bob' }).click()
  await look(p, 'disable')
  await p.getByRole('dialog').getByRole('button', { name: 'Disable' }).click()
  await p.getByText('bob is disabled.').waitFor()
  await q.getByText('Your session has ended.').waitFor({ timeout: 20_000 })
  await look(q, 'ended')
  await q.context().close()
  await p.getByRole('button', { name: 'Enable bob' }).click()
  await p.getByText('bob is enabled.').waitFor()
  say('who is disabled is out')
}
