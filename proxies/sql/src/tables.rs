//! The tables that a statement names.

use super::Dialect;
use super::lex::{self, Token};
use super::relations::relations;

/// A table as a statement names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What stands before the name, if anything does: "public".
    pub schema: Option<String>,
    /// The name: case-folded, or as quoted.
    pub name: String,
}

impl Table {
    /// Reads `table=`: a name, or a name with its schema; folded and unquoted as the server would.
    ///
    /// # Errors
    /// Anything that is not one name.
    pub fn named(text: &str, dialect: Dialect) -> Result<Table, String> {
        let tokens = lex::tokens(text, dialect);
        let odd = tokens.iter().enumerate().any(|(i, t)| {
            if i % 2 == 0 {
                t.word().is_none()
            } else {
                !t.is(".")
            }
        });
        if odd || tokens.len().is_multiple_of(2) {
            return Err(format!("`{text}` is not the name of a table"));
        }
        Ok(Table::of_tokens(&tokens))
    }

    fn of_tokens(tokens: &[Token]) -> Table {
        let name = |t: &Token| unquote(&t.text);
        let (last, before) = tokens.split_last().expect("a name has a token");
        let schema: Vec<String> = before.iter().step_by(2).map(name).collect();
        Table {
            schema: (!schema.is_empty()).then(|| schema.join(".")),
            name: name(last),
        }
    }

    /// Is `self`, as a rule names it, the table `other` of a statement? The schema counts only if the rule gives one.
    pub fn means(&self, other: &Table) -> bool {
        self.name == other.name && (self.schema.is_none() || self.schema == other.schema)
    }
}

/// A name as it is meant, without its quotes.
pub fn unquote(text: &str) -> String {
    for (quote, doubled) in [("\"", "\"\""), ("`", "``")] {
        let inside = text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote));
        if let Some(inside) = inside {
            return inside.replace(doubled, quote);
        }
    }
    text.to_owned()
}

/// The tables that one statement names; `ctes` are names that are none.
pub fn of(source: &str, ctes: &[Box<str>], dialect: Dialect) -> Vec<Table> {
    let tokens = lex::tokens(source, dialect);
    let mut tables: Vec<Table> = relations(&tokens, dialect)
        .into_iter()
        .map(|name| Table::of_tokens(&tokens[name]))
        .collect();
    tables.retain(|t| t.schema.is_some() || !ctes.iter().any(|c| unquote(c) == t.name));
    let mut seen: Vec<Table> = vec![];
    tables.retain(|t| {
        let new = !seen.contains(t);
        if new {
            seen.push(t.clone());
        }
        new
    });
    tables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Units;

    fn check(sql: &str, expected: &[&str]) {
        check_in(Dialect::Postgres, sql, expected);
    }

    fn check_in(dialect: Dialect, sql: &str, expected: &[&str]) {
        let units = Units::new(sql, dialect);
        let first = units.iter().next().expect("a statement");
        let names: Vec<String> = first
            .tables()
            .iter()
            .map(|t| match &t.schema {
                Some(schema) => format!("{schema}.{}", t.name),
                None => t.name.clone(),
            })
            .collect();
        assert_eq!(names, expected, "{sql}");
    }

    #[test]
    fn tables_of_statements() {
        check("SELECT 1", &[]);
        check("SELECT * FROM orders", &["orders"]);
        check(
            "select * from Orders o, shop.items AS i where o.id = i.id",
            &["orders", "shop.items"],
        );
        check(
            "SELECT * FROM a JOIN b USING (id) LEFT JOIN ONLY c ON a.x = c.x, d",
            &["a", "b", "c", "d"],
        );
        check("SELECT * FROM (a CROSS JOIN b) x", &["a", "b"]);
        check(
            "SELECT * FROM (SELECT * FROM inner_t) x WHERE id IN (SELECT id FROM other)",
            &["inner_t", "other"],
        );
        check(
            "SELECT (SELECT max(id) FROM m), EXISTS (SELECT 1 FROM e)",
            &["m", "e"],
        );
        check(
            "SELECT extract(year FROM ts), substring(x from 2), trim(both from y) FROM t",
            &["t"],
        );
        check("SELECT a IS DISTINCT FROM b FROM t", &["t"]);
        check(
            "SELECT * FROM generate_series(1, 3) g, LATERAL f(g) JOIN t ON true",
            &["t"],
        );
        check("SELECT * FROM t FOR UPDATE", &["t"]);
        check(
            "INSERT INTO \"Orders\" (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET id = 2",
            &["Orders"],
        );
        check("INSERT INTO a.b(x) SELECT x FROM c", &["a.b", "c"]);
        check(
            "UPDATE ONLY t SET a = u.a FROM u WHERE t.id = u.id",
            &["t", "u"],
        );
        check("DELETE FROM t USING u WHERE t.id = u.id", &["t", "u"]);
        check(
            "MERGE INTO t USING s ON t.id = s.id WHEN MATCHED THEN UPDATE SET a = 1",
            &["t", "s"],
        );
        check("COPY orders (id) FROM STDIN", &["orders"]);
        check("COPY (SELECT * FROM orders) TO STDOUT", &["orders"]);
        check("TRUNCATE TABLE a, b CASCADE", &["a", "b"]);
        check("TRUNCATE a", &["a"]);
        check("LOCK TABLE a IN SHARE MODE", &["a"]);
        check(
            "CREATE TABLE IF NOT EXISTS s.t (id int, u int REFERENCES v)",
            &["s.t"],
        );
        check("ALTER TABLE t ADD COLUMN x int", &["t"]);
        check("DROP TABLE IF EXISTS a, b", &["a", "b"]);
        check("TABLE orders", &["orders"]);
        check("VALUES (1), (2)", &[]);
        check("EXPLAIN ANALYZE UPDATE t SET a = 1", &["t"]);
        check(
            "WITH x AS (SELECT * FROM t), y (a) AS MATERIALIZED (SELECT 1) INSERT INTO z SELECT * FROM x, y",
            &["t", "z"],
        );
        check(
            "WITH RECURSIVE r AS (SELECT 1 UNION SELECT * FROM r JOIN t ON true) SELECT * FROM r",
            &["t"],
        );
        check(
            "SELECT * FROM a UNION SELECT * FROM b ORDER BY x, y",
            &["a", "b"],
        );
    }

    #[test]
    fn tables_of_what_belongs_to_them() {
        check("REFRESH MATERIALIZED VIEW totals", &["totals"]);
        check(
            "REFRESH MATERIALIZED VIEW CONCURRENTLY s.totals WITH NO DATA",
            &["s.totals"],
        );
        check("CREATE UNIQUE INDEX i ON ONLY t USING btree (a)", &["t"]);
        check("CREATE INDEX CONCURRENTLY ON t (a) WHERE b", &["t"]);
        check(
            "CREATE OR REPLACE TRIGGER x AFTER INSERT OR UPDATE OF a ON s.t FOR EACH ROW EXECUTE FUNCTION f()",
            &["s.t"],
        );
        check("DROP TRIGGER IF EXISTS x ON t", &["t"]);
        check("CREATE EVENT TRIGGER x ON ddl_command_end", &[]);
        check(
            "CREATE POLICY p ON t FOR UPDATE TO r USING (a = current_user)",
            &["t"],
        );
        check("ALTER POLICY p ON t RENAME TO q", &["t"]);
        check("DROP RULE r ON t", &["t"]);
        check(
            "CREATE VIEW v AS SELECT * FROM a JOIN b ON a.x = b.x",
            &["a", "b"],
        );
        check(
            "GRANT SELECT, UPDATE (a), TRUNCATE ON a, s.b TO r",
            &["a", "s.b"],
        );
        check("GRANT INSERT, UPDATE ON TABLE t TO r", &["t"]);
        check("REVOKE ALL ON t FROM bob", &["t"]);
        check("REVOKE r FROM bob", &[]);
        check("GRANT USAGE ON SCHEMA s TO r", &[]);
        check("GRANT SELECT ON ALL TABLES IN SCHEMA s TO r", &[]);
        check("ANALYZE", &[]);
        check("ANALYZE VERBOSE t (a, b), u", &["t", "u"]);
        check("ANALYZE (VERBOSE) t", &["t"]);
        check("EXPLAIN ANALYZE SELECT * FROM t", &["t"]);
        check("VACUUM", &[]);
        check("VACUUM FULL VERBOSE t, u", &["t", "u"]);
        check("VACUUM (FULL, ANALYZE) t", &["t"]);
        check("CLUSTER t USING i", &["t"]);
        check("CLUSTER VERBOSE i ON t", &["t"]);
        check("CLUSTER", &[]);
        check(
            "CREATE TABLE x (LIKE orders INCLUDING ALL, n int CHECK (a LIKE 'b'))",
            &["x", "orders"],
        );
        check(
            "CREATE TABLE x AS SELECT * FROM t WHERE a LIKE b",
            &["x", "t"],
        );
        let check = |sql: &str, expected: &[&str]| check_in(Dialect::MYSQL, sql, expected);
        check(
            "CREATE TABLE IF NOT EXISTS x LIKE shop.orders",
            &["x", "shop.orders"],
        );
        check("CREATE TABLE x (LIKE orders)", &["x", "orders"]);
        check("CREATE TABLE x SELECT * FROM t WHERE a LIKE b", &["x", "t"]);
        check("SHOW TABLES LIKE 'a'", &[]);
        check("FLUSH TABLES orders, b WITH READ LOCK", &["orders", "b"]);
        check("FLUSH TABLES WITH READ LOCK", &[]);
        check("FLUSH TABLES", &[]);
        check("GRANT SELECT, UPDATE ON shop.t TO r", &["shop.t"]);
        check("GRANT ALL ON shop.* TO r", &[]);
        check("GRANT ALL ON *.* TO r", &[]);
        check(
            "CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW SET NEW.a = 1",
            &["t"],
        );
    }

    #[test]
    fn tables_of_mysqls_statements() {
        let check = |sql: &str, expected: &[&str]| check_in(Dialect::MYSQL, sql, expected);
        check(
            "SELECT * FROM `shop`.`Orders` o STRAIGHT_JOIN b",
            &["shop.orders", "b"],
        );
        check(
            "INSERT IGNORE t (a) VALUES (1) ON DUPLICATE KEY UPDATE a = 2",
            &["t"],
        );
        check("INSERT LOW_PRIORITY INTO t SELECT * FROM s", &["t", "s"]);
        check("REPLACE INTO t SET a = 1", &["t"]);
        check("REPLACE t VALUES (1)", &["t"]);
        check("SELECT REPLACE(a, 'x', 'y') FROM t", &["t"]);
        check("UPDATE LOW_PRIORITY a, b SET a.x = b.x", &["a", "b"]);
        check("DELETE a, b FROM a JOIN b USING (id)", &["a", "b"]);
        check("SELECT 1 FROM DUAL", &[]);
        check("SELECT a INTO OUTFILE '/x' FROM t", &["t"]);
        check("SELECT a INTO @v FROM t", &["t"]);
        check(
            "LOAD DATA LOCAL INFILE 'x' IGNORE INTO TABLE t FIELDS TERMINATED BY ','",
            &["t"],
        );
        check("LOCK TABLES a READ, b WRITE", &["a", "b"]);
        check("DESCRIBE t", &["t"]);
        check("DESC SELECT * FROM t", &["t"]);
        check(
            "SELECT * FROM t USE INDEX FOR JOIN (i) ORDER BY a DESC, b",
            &["t"],
        );
        check("RENAME TABLE a TO b", &["a", "b"]);
        check("CREATE UNIQUE INDEX i ON t (a)", &["t"]);
        check("SELECT * FROM t FOR UPDATE", &["t"]);
        check("HANDLER t OPEN", &["t"]);
        check("SELECT CONVERT(a USING utf8mb4) FROM `a b`", &["a b"]);
    }

    #[test]
    fn tables_as_rules_name_them() {
        let named = |text: &str| Table::named(text, Dialect::Postgres);
        let orders = named("orders").unwrap();
        let shop = named("Shop.\"Orders\"").unwrap();
        assert_eq!(
            (shop.schema.as_deref(), shop.name.as_str()),
            (Some("shop"), "Orders")
        );
        assert!(orders.means(&named("public.orders").unwrap()));
        assert!(!shop.means(&orders));
        assert!(!named("public.orders").unwrap().means(&orders));
        for bad in ["", "a b", "a.", "'a'", "a.b.", "a;"] {
            assert!(named(bad).is_err(), "{bad}");
        }
    }
}
