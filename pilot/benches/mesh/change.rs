//! How soon all daemons know of a change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    clients,
    folder::{self, TEN_THOUSAND},
    process::{Pilot, replace},
    row::{Row, milliseconds},
};

const CLIENTS: usize = 1_000;
const CHANGES: usize = 30;
/// Connections that are begun before the ones before have everything.
const AT_ONCE: usize = 8;
/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// One pod's label changes, with a thousand daemons connected.
pub(crate) fn reaches_a_thousand() -> Result<Vec<Row>> {
    let (pilot, _) = Pilot::start(TEN_THOUSAND)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (acknowledged, mut acknowledgements) = mpsc::unbounded_channel();
        // Each daemon acknowledges two types.
        let begun = Instant::now();
        for started in (0..CLIENTS).step_by(AT_ONCE) {
            let now = AT_ONCE.min(CLIENTS - started);
            for _ in 0..now {
                let client = clients::run(pilot.addresses["plain"].clone(), acknowledged.clone());
                tokio::spawn(async move {
                    if let Err(error) = client.await {
                        eprintln!("a daemon: {error:#}");
                    }
                });
            }
            for _ in 0..now * 2 {
                next(&mut acknowledgements).await?;
            }
        }
        let connected = begun.elapsed();
        let cpu = pilot.cpu()?;
        let mut times = Vec::with_capacity(CHANGES);
        for change in 0..CHANGES {
            let text = folder::service(TEN_THOUSAND, change, "v2")?;
            let begun = Instant::now();
            replace(&pilot.folder().join(format!("service-{change}.yaml")), &text)?;
            let mut last = begun;
            for _ in 0..CLIENTS {
                last = next(&mut acknowledgements).await?;
            }
            times.push(last - begun);
        }
        let cpu = (pilot.cpu()? - cpu) / u32::try_from(CHANGES)?;
        Ok(vec![
            Row::once("1,000 daemons connect, 8 at once", milliseconds(connected), ""),
            Row::times("one pod changes: the last of 1,000 daemons knows", times, "p99 500 ms"),
            Row::once("one pod changes: processor time", milliseconds(cpu), ""),
        ])
    })
}

async fn next(acknowledgements: &mut mpsc::UnboundedReceiver<Instant>) -> Result<Instant> {
    let next = timeout(LONG, acknowledgements.recv()).await;
    next.context("an acknowledgement in time")?.context("daemons")
}
