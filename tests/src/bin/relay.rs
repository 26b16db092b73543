//! A plaintext relay: what a proxy would do if it neither encrypted nor decided. Two of them in a row are the bound that the
//! mesh is compared with.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::Result;
use clap::Parser;
use testbed::load::pump::{READ_BYTES, pump};
use testbed::load::threads;
use tokio::net::TcpStream;
use tokio::task::spawn_local;

/// Relays TCP connections, in the clear, until it is killed.
#[derive(Parser)]
struct Cli {
    /// Where clients connect.
    #[arg(long)]
    listen: SocketAddr,
    /// Where their connections go.
    #[arg(long)]
    to: SocketAddr,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    threads::run(threads::available(), async |_| {
        let listener = threads::listen(cli.listen)?;
        let buffer = Rc::new(RefCell::new(vec![0; READ_BYTES]));
        loop {
            let (client, _) = listener.accept().await?;
            let (buffer, to) = (Rc::clone(&buffer), cli.to);
            // Either side that fails ends both: dropping the sockets tells the other.
            spawn_local(async move { relay(client, to, &buffer).await.ok() });
        }
        #[expect(
            unreachable_code,
            reason = "names the type of a job that ends only with the process"
        )]
        Ok(())
    })
    .map(drop)
}

async fn relay(client: TcpStream, to: SocketAddr, buffer: &RefCell<Vec<u8>>) -> io::Result<()> {
    client.set_nodelay(true)?;
    let server = threads::connect(to).await?;
    tokio::try_join!(pump(&client, &server, buffer), pump(&server, &client, buffer)).map(drop)
}
