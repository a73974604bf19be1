// money writes an amount that the core gave as an exact decimal. Its digits are kept as they
// are: a number of JavaScript would round long ones. Only the thousands are parted.
export function money(amount: string, currency?: string): string {
  const [, sign = '', whole = '', rest = ''] = /^(-?)(\d+)(\.\d+)?$/.exec(amount) ?? []
  if (!whole) return [amount, currency].filter(Boolean).join(' ')
  return [`${sign}${whole.replace(/\B(?=(\d{3})+$)/g, '\u202f')}${rest}`, currency].filter(Boolean).join(' ')
}
