//! What is in stock, as the log's records say.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::wal::{AppendError, Wal};

/// The stock and its log. In memory stands exactly what the log holds.
#[derive(Debug)]
pub struct Stock {
    wal: Wal,
    left: HashMap<String, u64>,
}

/// Why nothing was reserved.
#[derive(Debug)]
pub enum ReserveError {
    /// There is no such item.
    Unknown,
    /// There are only so many left.
    TooFew(u64),
    /// It could not be made durable.
    Log(AppendError),
}

impl Stock {
    /// Starts from `initial` and replays the log at `path`.
    ///
    /// # Errors
    /// The log cannot be opened, or does not belong to this stock.
    pub fn open(path: &Path, initial: HashMap<String, u64>) -> Result<Stock, String> {
        let (wal, records) =
            Wal::open(path).map_err(|e| format!("the log {}: {e}", path.display()))?;
        let mut stock = Stock { wal, left: initial };
        for record in records {
            stock
                .replay(&record)
                .ok_or_else(|| format!("the log {}: bad record `{record}`", path.display()))?;
        }
        Ok(stock)
    }

    fn replay(&mut self, record: &str) -> Option<()> {
        let record: Value = serde_json::from_str(record).ok()?;
        let left = self.left.get_mut(record["item"].as_str()?)?;
        *left = left.checked_sub(record["quantity"].as_u64()?)?;
        Some(())
    }

    /// How many of `item` are left.
    pub fn left(&self, item: &str) -> Option<u64> {
        self.left.get(item).copied()
    }

    /// Takes `quantity` of `item` out of stock and returns how many are left, once that is on disk.
    ///
    /// # Errors
    /// See [`ReserveError`]; the stock is then as it was.
    pub fn reserve(&mut self, item: &str, quantity: u64) -> Result<u64, ReserveError> {
        let left = self.left(item).ok_or(ReserveError::Unknown)?;
        let rest = left
            .checked_sub(quantity)
            .ok_or(ReserveError::TooFew(left))?;
        let record = json!({"item": item, "quantity": quantity}).to_string();
        self.wal.append(&record).map_err(ReserveError::Log)?;
        self.left.insert(item.to_owned(), rest);
        Ok(rest)
    }

    /// Has a failed sync made the stock read-only until a restart?
    pub fn read_only(&self) -> bool {
        self.wal.poisoned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            Stock::open(
                &dir.path().join("wal"),
                HashMap::from([("widget".to_owned(), 5)]),
            )
        };
        let mut stock = open().unwrap();
        assert_eq!(stock.reserve("widget", 2).unwrap(), 3);
        assert!(matches!(
            stock.reserve("widget", 4),
            Err(ReserveError::TooFew(3))
        ));
        assert!(matches!(
            stock.reserve("gadget", 1),
            Err(ReserveError::Unknown)
        ));
        drop(stock);
        assert_eq!(open().unwrap().left("widget"), Some(3));
        let other = Stock::open(&dir.path().join("wal"), HashMap::new());
        assert!(other.unwrap_err().contains("bad record"));
    }
}
