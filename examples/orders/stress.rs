//! Fifty orders at once.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::Failure;
use crate::api::Wanted;

/// Places `orders` orders, all at the same time; returns how many books that are.
pub(crate) async fn stress(api: SocketAddr, orders: i32) -> Result<i32, Failure> {
    let mut placing = JoinSet::new();
    for number in 0..orders {
        let wanted = Wanted {
            sku: "book".to_owned(),
            quantity: 1 + number % 3,
        };
        placing.spawn(async move {
            place(api, &wanted).await?;
            Ok::<_, Failure>(wanted.quantity)
        });
    }
    let mut books = 0;
    while let Some(placed) = placing.join_next().await {
        books += placed??;
    }
    Ok(books)
}

async fn place(api: SocketAddr, wanted: &Wanted) -> Result<(), Failure> {
    let stream = TcpStream::connect(api).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::post("/orders")
        .header("host", api.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(wanted)?)))?;
    let answered = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        match status {
            StatusCode::CREATED => Ok(()),
            _ => Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into()),
        }
    };
    tokio::select! {
        answered = answered => answered,
        ended = connection => Err(format!("the API hung up: {ended:?}").into()),
    }
}
