//! A shop: an order API that writes order and event in one transaction, outjet that publishes the
//! events, and an inventory that takes each order from stock once. `scripts/orders` runs it all on
//! servers of its own and checks the balance; the subcommands run the parts against yours.

#[path = "../../tests/it/harness/mod.rs"]
mod harness;

mod api;
mod inventory;
mod stress;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use clap::{Parser, Subcommand};
use deadpool_postgres::{Manager, Pool};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

use harness::postgres::Session;
use harness::{Wait, World, until};
use inventory::Tally;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Orders, their events, and an inventory that counts each of them once
#[derive(Parser)]
#[command(name = "orders")]
struct Asked {
    /// Without one, everything on throwaway servers
    #[command(subcommand)]
    part: Option<Part>,
}

/// The servers come from DATABASE_URL (key=value form) and NATS_URL; tables from schema.sql.
#[derive(Subcommand)]
enum Part {
    /// Answer POST /orders
    Api {
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
    },
    /// Take ordered books from stock
    Inventory,
    /// Place orders at the same time
    Stress {
        #[arg(long, default_value = "127.0.0.1:8080")]
        api: SocketAddr,
        #[arg(long, default_value_t = ORDERS)]
        orders: i32,
    },
    /// Have everything delivered to the inventory again
    Replay,
}

const ORDERS: i32 = 50;

/// Connections of the API: fewer than there are orders at once.
const CONNECTIONS: usize = 8;

/// For a machine that has other things to do.
const SOON: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Failure> {
    match Asked::parse().part {
        None => return show().await,
        Some(Part::Api { listen }) => {
            let listener = TcpListener::bind(listen).await?;
            api::serve(listener, pool(&variable("DATABASE_URL")?)?).await?;
        }
        Some(Part::Inventory) => {
            let database = variable("DATABASE_URL")?;
            let (client, connection) = tokio_postgres::connect(&database, NoTls).await?;
            let consumed = inventory::consume(jetstream().await?, client, Arc::default());
            tokio::select! {
                consumed = consumed => consumed?,
                ended = connection => ended?,
            }
        }
        Some(Part::Stress { api, orders }) => {
            let books = stress::stress(api, orders).await?;
            println!("{orders} orders for {books} books");
        }
        Some(Part::Replay) => inventory::replay(&jetstream().await?).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Everything, from nothing to a balance.
async fn show() -> Result<ExitCode, Failure> {
    let world = World::start().await;
    let setup = world.outjet(["setup"]).output().await;
    assert_eq!(setup.code, Some(0), "{setup:?}");
    let session = world.postgres.connect().await;
    session.run(include_str!("schema.sql")).await;
    let _outjet = world.outjet(["run"]).spawn();

    let mut parts = JoinSet::new();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    parts.spawn(api::serve(listener, pool(&world.postgres.url())?));
    let (client, connection) = tokio_postgres::connect(&world.postgres.url(), NoTls).await?;
    parts.spawn(async { Ok(connection.await?) });
    let jetstream = world.nats.jetstream().await;
    let tally = Arc::new(Tally::default());
    parts.spawn(inventory::consume(jetstream.clone(), client, tally.clone()));

    let played = async {
        let books = stress::stress(address, ORDERS).await?;
        println!("{ORDERS} orders for {books} books were placed at the same time");
        counted(&tally.applied).await;
        let once = balanced(&session, books).await;
        println!("\nEverything is delivered again:");
        inventory::replay(&jetstream).await?;
        counted(&tally.skipped).await;
        Ok::<_, Failure>(once && balanced(&session, books).await)
    };
    let balanced = tokio::select! {
        played = played => played?,
        ended = parts.join_next() => panic!("a part of the shop ended: {ended:?}"),
    };
    let balanced = balanced && tally.applied.load(Ordering::SeqCst) == ORDERS as usize;
    match balanced {
        true => println!("\nEvery order was taken from stock, once."),
        false => println!("\nOUT OF BALANCE"),
    }
    Ok(ExitCode::from(u8::from(!balanced)))
}

/// Waits until the inventory has seen every order.
async fn counted(seen: &AtomicUsize) {
    until("every order has been seen", SOON, async || {
        let seen = seen.load(Ordering::SeqCst);
        Wait::ready_if(seen >= ORDERS as usize, seen)
    })
    .await;
}

/// Whether the stock is what it was without what was ordered, and says it.
async fn balanced(session: &Session, books: i32) -> bool {
    let ordered = session.text("SELECT sum(quantity) FROM orders").await;
    let taken = session.text("SELECT 1000 - in_stock FROM inventory").await;
    println!("\nordered {ordered}, taken from stock {taken}");
    ordered == books.to_string() && taken == ordered
}

fn pool(database: &str) -> Result<Pool, Failure> {
    let manager = Manager::new(database.parse()?, NoTls);
    Ok(Pool::builder(manager).max_size(CONNECTIONS).build()?)
}

async fn jetstream() -> Result<jetstream::Context, Failure> {
    Ok(jetstream::new(
        async_nats::connect(variable("NATS_URL")?).await?,
    ))
}

fn variable(name: &str) -> Result<String, Failure> {
    std::env::var(name).map_err(|_| format!("{name} is not set").into())
}
