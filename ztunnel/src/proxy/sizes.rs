//! What a connection costs in memory while nothing moves: the state that its task keeps, in bytes. The allocator's next
//! larger size is what is paid, so small growth may cost nothing and one byte 512.

use std::{net::SocketAddr, rc::Rc};

use mesh::hbone::Incoming;
use tokio::net::TcpStream;

use super::{
    inbound::{self, Ends},
    outbound, plaintext,
    share::Held,
    thread::{DataThread, LocalPod},
};

/// The size of what a function's future keeps.
macro_rules! size {
    ($function:path, $($argument:ty),*) => {{
        fn size<F: Future>(_: impl FnOnce($($argument),*) -> F) -> usize {
            size_of::<F>()
        }
        size($function)
    }};
}

#[test]
fn a_task_keeps_no_more_than_it_needs_while_nothing_moves() {
    let outbound =
        size!(outbound::serve, Rc<DataThread>, Rc<LocalPod>, TcpStream, SocketAddr, Held);
    let plaintext =
        size!(plaintext::serve, Rc<DataThread>, Rc<LocalPod>, TcpStream, SocketAddr, Held);
    let stream = size!(inbound::stream, Rc<DataThread>, Rc<LocalPod>, Rc<Ends>, Incoming);
    let tunnel = size!(inbound::serve, Rc<DataThread>, Rc<LocalPod>, TcpStream, SocketAddr, Held);
    let sizes = [outbound, plaintext, stream, tunnel];
    let most = [2000, 2000, 1400, 3500];
    assert!(
        sizes.iter().zip(most).all(|(size, most)| *size <= most),
        "{sizes:?}, at most {most:?}"
    );
}
