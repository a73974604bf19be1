-- +goose Up
-- Terms that something was rated by, by their digest. They never change.
CREATE TABLE bill_terms (
  digest TEXT NOT NULL PRIMARY KEY,
  body   BLOB NOT NULL
);

-- What each issue of a period was begun with, so that one that was cut off ends with the same bytes.
CREATE TABLE bill_runs (
  tenant  TEXT NOT NULL,     -- uid
  period  TEXT NOT NULL,
  attempt INTEGER NOT NULL,  -- above 1 when an invoice of the period was credited whole
  as_of   INTEGER NOT NULL,  -- Unix milliseconds: usage received later is late
  issued  TEXT NOT NULL,     -- YYYY-MM-DD
  actor   TEXT NOT NULL,
  number  TEXT NOT NULL,     -- of the invoice; empty until it is issued
  PRIMARY KEY (tenant, period, attempt)
) WITHOUT ROWID;

-- Issued invoices and credit notes: the very bytes.
CREATE TABLE bill_documents (
  number  TEXT NOT NULL PRIMARY KEY,
  kind    TEXT NOT NULL,
  tenant  TEXT NOT NULL,
  name    TEXT NOT NULL,  -- the tenant's then
  period  TEXT NOT NULL,
  began   INTEGER NOT NULL,  -- Unix seconds
  ended   INTEGER NOT NULL,
  refers  TEXT NOT NULL,  -- the invoice that a credit note is of
  seq     INTEGER NOT NULL,  -- its entry in the journal
  json    BLOB NOT NULL,
  csv     BLOB NOT NULL,
  focus   BLOB NOT NULL,
  pdf     BLOB NOT NULL
);
CREATE INDEX bill_documents_tenant ON bill_documents (tenant, seq);

-- What people decided about unpriced usage and gaps.
CREATE TABLE bill_decisions (
  tenant  TEXT NOT NULL,
  period  TEXT NOT NULL,
  subject TEXT NOT NULL,
  n       INTEGER NOT NULL,  -- counts decisions about the subject
  seq     INTEGER NOT NULL,  -- its entry in the journal
  body    BLOB NOT NULL,
  PRIMARY KEY (tenant, period, subject, n)
) WITHOUT ROWID;

-- The ledger: entries that only grow, each with the hash of the one before.
CREATE TABLE bill_journal (
  seq    INTEGER NOT NULL PRIMARY KEY,
  at     INTEGER NOT NULL,  -- Unix milliseconds
  kind   TEXT NOT NULL,
  tenant TEXT NOT NULL,
  ref    TEXT NOT NULL,
  digest TEXT NOT NULL,     -- of what it is about
  prev   TEXT NOT NULL,
  hash   TEXT NOT NULL
);

-- Debits (positive) and credits (negative) of an entry: their sum is nothing.
CREATE TABLE bill_postings (
  seq      INTEGER NOT NULL,
  n        INTEGER NOT NULL,
  account  TEXT NOT NULL,
  currency TEXT NOT NULL,
  minor    INTEGER NOT NULL,
  PRIMARY KEY (seq, n)
) WITHOUT ROWID;

-- The last number of each series in each epoch of the core.
CREATE TABLE bill_series (
  series TEXT NOT NULL,
  epoch  INTEGER NOT NULL,
  last   INTEGER NOT NULL,
  PRIMARY KEY (series, epoch)
) WITHOUT ROWID;

-- Thresholds of budgets that were told of.
CREATE TABLE bill_fired (
  budget    TEXT NOT NULL,  -- uid
  period    TEXT NOT NULL,
  threshold INTEGER NOT NULL,
  at        INTEGER NOT NULL,
  spent     TEXT NOT NULL,
  PRIMARY KEY (budget, period, threshold)
) WITHOUT ROWID;

-- +goose Down
DROP TABLE bill_fired;
DROP TABLE bill_series;
DROP TABLE bill_postings;
DROP TABLE bill_journal;
DROP TABLE bill_decisions;
DROP TABLE bill_documents;
DROP TABLE bill_runs;
DROP TABLE bill_terms;
