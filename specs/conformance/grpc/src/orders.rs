//! The orders: each method does what its name says, with what it is sent.

use std::sync::Mutex;

use crate::{Call, NOT_FOUND, Status, UNIMPLEMENTED};

/// An order.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Order {
    /// Counted from 1.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// What is ordered.
    #[prost(string, tag = "2")]
    pub item: String,
    /// How many.
    #[prost(int32, tag = "3")]
    pub quantity: i32,
}

/// Which orders.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Query {
    /// The first one.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// How many at most.
    #[prost(int32, tag = "2")]
    pub count: i32,
}

/// How many.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Count {
    /// So many.
    #[prost(int32, tag = "1")]
    pub count: i32,
}

static ORDERS: Mutex<Vec<Order>> = Mutex::new(vec![]);

fn create(mut order: Order) -> Order {
    let mut orders = ORDERS.lock().unwrap_or_else(|e| e.into_inner());
    order.id = orders.len() as i64 + 1;
    orders.push(order.clone());
    order
}

fn get(id: i64) -> Option<Order> {
    let orders = ORDERS.lock().unwrap_or_else(|e| e.into_inner());
    orders.iter().find(|o| o.id == id).cloned()
}

/// Carries out one call.
pub async fn call(method: &str, call: &mut Call) -> Result<(), Status> {
    match method {
        "Create" => {
            let order = call.only().await?;
            call.say(&create(order)).await
        }
        "Get" => {
            let query: Query = call.only().await?;
            match get(query.id) {
                Some(order) => call.say(&order).await,
                None => Err(NOT_FOUND),
            }
        }
        // One order over and over: a spec need not create many first.
        "Watch" => {
            let query: Query = call.only().await?;
            for id in 1..=i64::from(query.count) {
                let order = Order {
                    id,
                    item: "watched".into(),
                    quantity: 1,
                };
                call.say(&order).await?;
            }
            Ok(())
        }
        "Import" => {
            let mut count = 0;
            while let Some(order) = call.next().await? {
                create(order);
                count += 1;
            }
            call.say(&Count { count }).await
        }
        "Exchange" => {
            while let Some(order) = call.next().await? {
                call.say(&create(order)).await?;
            }
            Ok(())
        }
        _ => Err(UNIMPLEMENTED),
    }
}
