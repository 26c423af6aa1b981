//! Everything one test needs: a database, a broker, and the program configured for both.

use super::{Nats, Outjet, Postgres, nats, outjet, postgres};

/// Two servers and the way to call outjet on them.
pub(crate) struct World {
    /// The database.
    pub(crate) postgres: Postgres,
    /// The broker.
    pub(crate) nats: Nats,
}

impl World {
    /// Two servers with the usual settings.
    pub(crate) async fn start() -> Self {
        Self::with(Postgres::builder(), Nats::builder()).await
    }

    /// Two servers with settings of the test.
    pub(crate) async fn with(postgres: postgres::Builder, nats: nats::Builder) -> Self {
        let (postgres, nats) = tokio::join!(postgres.start(), nats.start());
        Self { postgres, nats }
    }

    /// A call of outjet that finds both servers through its environment.
    pub(crate) fn outjet<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> outjet::Builder {
        Outjet::builder()
            .env("DATABASE_URL", self.postgres.url())
            .env("NATS_URL", self.nats.url())
            .args(arguments)
    }
}
