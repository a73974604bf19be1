import { useSyncExternalStore } from 'react'
import { en, type Key } from './en'
import { zh } from './zh'

export type { Key }
export type Language = 'en' | 'zh'
const words = { en, zh }
const listeners = new Set<() => void>()
const kept = localStorage.getItem('tributary.language')
let language: Language = kept === 'en' || kept === 'zh' ? kept : navigator.language.startsWith('zh') ? 'zh' : 'en'
document.documentElement.lang = language

export function speak(l: Language) {
  language = l
  localStorage.setItem('tributary.language', l)
  document.documentElement.lang = l
  listeners.forEach((f) => f())
}
export const useLanguage = () => useSyncExternalStore((f) => { listeners.add(f); return () => { listeners.delete(f) } }, () => language)

// t says something in the reader's language; {name} in it is filled in.
export function t(key: Key, values: Record<string, string | number> = {}): string {
  return words[language][key].replace(/\{(\w+)\}/g, (all, name: string) => String(values[name] ?? all))
}
