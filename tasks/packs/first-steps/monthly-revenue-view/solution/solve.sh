#!/bin/bash
# Amounts are summed per order first: joining items with refunds would count rows several times.
set -eu
sqlite3 /app/shop.db <<'SQL'
CREATE VIEW monthly_revenue AS
SELECT
    substr(o.placed_at, 1, 7) AS month,
    coalesce(c.country, 'unknown') AS country,
    count(*) AS orders,
    sum(
        coalesce((SELECT sum(i.quantity * i.unit_cents) FROM items i WHERE i.order_id = o.id), 0)
        - coalesce((SELECT sum(r.cents) FROM refunds r WHERE r.order_id = o.id), 0)
    ) AS revenue_cents
FROM orders o
JOIN customers c ON c.id = o.customer_id
WHERE o.status IN ('paid', 'shipped')
GROUP BY 1, 2;
SELECT * FROM monthly_revenue LIMIT 3;
SQL
