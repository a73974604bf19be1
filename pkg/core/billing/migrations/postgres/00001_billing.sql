-- +goose Up
-- Terms that something was rated by, by their digest. They never change.
CREATE TABLE bill_terms (
  digest TEXT COLLATE "C" NOT NULL PRIMARY KEY,
  body   BYTEA NOT NULL
);

-- What each issue of a period was begun with, so that one that was cut off ends with the same bytes.
CREATE TABLE bill_runs (
  tenant  TEXT COLLATE "C" NOT NULL,     -- uid
  period  TEXT COLLATE "C" NOT NULL,
  attempt BIGINT NOT NULL,  -- above 1 when an invoice of the period was credited whole
  as_of   BIGINT NOT NULL,  -- Unix milliseconds: usage received later is late
  issued  TEXT COLLATE "C" NOT NULL,     -- YYYY-MM-DD
  actor   TEXT COLLATE "C" NOT NULL,
  number  TEXT COLLATE "C" NOT NULL,     -- of the invoice; empty until it is issued
  PRIMARY KEY (tenant, period, attempt)
);

-- Issued invoices and credit notes: the very bytes.
CREATE TABLE bill_documents (
  number  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
  kind    TEXT COLLATE "C" NOT NULL,
  tenant  TEXT COLLATE "C" NOT NULL,
  name    TEXT COLLATE "C" NOT NULL,  -- the tenant's then
  period  TEXT COLLATE "C" NOT NULL,
  began   BIGINT NOT NULL,  -- Unix seconds
  ended   BIGINT NOT NULL,
  refers  TEXT COLLATE "C" NOT NULL,  -- the invoice that a credit note is of
  seq     BIGINT NOT NULL,  -- its entry in the journal
  json    BYTEA NOT NULL,
  csv     BYTEA NOT NULL,
  focus   BYTEA NOT NULL,
  pdf     BYTEA NOT NULL
);
CREATE INDEX bill_documents_tenant ON bill_documents (tenant, seq);

-- What people decided about unpriced usage and gaps.
CREATE TABLE bill_decisions (
  tenant  TEXT COLLATE "C" NOT NULL,
  period  TEXT COLLATE "C" NOT NULL,
  subject TEXT COLLATE "C" NOT NULL,
  n       BIGINT NOT NULL,  -- counts decisions about the subject
  seq     BIGINT NOT NULL,  -- its entry in the journal
  body    BYTEA NOT NULL,
  PRIMARY KEY (tenant, period, subject, n)
);

-- The ledger: entries that only grow, each with the hash of the one before.
CREATE TABLE bill_journal (
  seq    BIGINT NOT NULL PRIMARY KEY,
  at     BIGINT NOT NULL,  -- Unix milliseconds
  kind   TEXT COLLATE "C" NOT NULL,
  tenant TEXT COLLATE "C" NOT NULL,
  ref    TEXT COLLATE "C" NOT NULL,
  digest TEXT COLLATE "C" NOT NULL,     -- of what it is about
  prev   TEXT COLLATE "C" NOT NULL,
  hash   TEXT COLLATE "C" NOT NULL
);

-- Debits (positive) and credits (negative) of an entry: their sum is nothing.
CREATE TABLE bill_postings (
  seq      BIGINT NOT NULL,
  n        BIGINT NOT NULL,
  account  TEXT COLLATE "C" NOT NULL,
  currency TEXT COLLATE "C" NOT NULL,
  minor    BIGINT NOT NULL,
  PRIMARY KEY (seq, n)
);

-- The last number of each series in each epoch of the core.
CREATE TABLE bill_series (
  series TEXT COLLATE "C" NOT NULL,
  epoch  BIGINT NOT NULL,
  last   BIGINT NOT NULL,
  PRIMARY KEY (series, epoch)
);

-- Thresholds of budgets that were told of.
CREATE TABLE bill_fired (
  budget    TEXT COLLATE "C" NOT NULL,  -- uid
  period    TEXT COLLATE "C" NOT NULL,
  threshold BIGINT NOT NULL,
  at        BIGINT NOT NULL,
  spent     TEXT COLLATE "C" NOT NULL,
  PRIMARY KEY (budget, period, threshold)
);

-- +goose Down
DROP TABLE bill_fired;
DROP TABLE bill_series;
DROP TABLE bill_postings;
DROP TABLE bill_journal;
DROP TABLE bill_decisions;
DROP TABLE bill_documents;
DROP TABLE bill_runs;
DROP TABLE bill_terms;
