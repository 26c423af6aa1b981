-- What the shop has beside the outbox.
CREATE TABLE orders (
  id       uuid PRIMARY KEY,
  sku      text NOT NULL,
  quantity int  NOT NULL CHECK (quantity > 0)
);
CREATE TABLE inventory (
  sku      text PRIMARY KEY,
  in_stock int  NOT NULL
);
INSERT INTO inventory VALUES ('book', 1000);
