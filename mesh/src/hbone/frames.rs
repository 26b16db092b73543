//! The heads of the frames that a peer sends, read beside `h2`, which keeps them to itself.
//!
//! In: the bytes of HTTP/2 as they come, in pieces of any size. Out: each frame's kind, flags and stream (RFC 9113 §4.1).
//! Payloads are skipped; nothing is held back, changed or judged.

/// Bytes of a frame's head.
const HEAD: usize = 9;
/// Bytes that a client sends before its first frame (RFC 9113 §3.4).
const PREFACE: usize = 24;

/// The position in what a peer sends.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes that belong to no head.
    skip: usize,
    head: [u8; HEAD],
    filled: usize,
}

/// The head of one frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) stream: u32,
    /// The peer's last frame on this stream.
    pub(super) ends_stream: bool,
}

/// What a frame is, as far as anybody here asks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Kind {
    Data,
    Headers,
    ResetStream,
    Settings,
    Ping,
    WindowUpdate,
    Continuation,
    /// PRIORITY, PUSH_PROMISE, GOAWAY and whatever is not defined.
    Other,
}

impl Frames {
    /// What a server sends.
    pub(super) fn of_server() -> Self {
        Self { skip: 0, head: [0; HEAD], filled: 0 }
    }

    /// What a client sends.
    pub(super) fn of_client() -> Self {
        Self { skip: PREFACE, ..Self::of_server() }
    }

    /// Goes on by `bytes` and tells each head that is complete.
    pub(super) fn read(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == HEAD {
                self.filled = 0;
                let [high, middle, low, kind, flags, stream @ ..] = self.head;
                self.skip = u32::from_be_bytes([0, high, middle, low]) as usize;
                tell(Frame::new(kind, flags, u32::from_be_bytes(stream)));
            }
        }
    }
}

impl Frame {
    fn new(kind: u8, flags: u8, stream: u32) -> Self {
        const END_STREAM: u8 = 1;
        const RESERVED: u32 = 1 << 31;
        let kind = match kind {
            0 => Kind::Data,
            1 => Kind::Headers,
            3 => Kind::ResetStream,
            4 => Kind::Settings,
            6 => Kind::Ping,
            8 => Kind::WindowUpdate,
            9 => Kind::Continuation,
            _ => Kind::Other,
        };
        let ends_stream = matches!(kind, Kind::Data | Kind::Headers) && flags & END_STREAM != 0;
        Self { kind, stream: stream & !RESERVED, ends_stream }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, length: usize) -> Vec<u8> {
        let head = [&(length as u32).to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes()];
        [head.concat(), vec![0xff; length]].concat()
    }

    fn told(mut frames: Frames, pieces: &[&[u8]]) -> Vec<Frame> {
        let mut told = Vec::new();
        pieces.iter().for_each(|piece| frames.read(piece, |frame| told.push(frame)));
        told
    }

    #[test]
    fn only_data_and_headers_end_a_stream() {
        for (kind, flags, ends) in
            [(0, 1, true), (1, 5, true), (0, 8, false), (4, 1, false), (6, 1, false)]
        {
            let told = told(Frames::of_server(), &[&frame(kind, flags, 1 << 31 | 3, 8)]);
            assert_eq!((told[0].stream, told[0].ends_stream), (3, ends), "{kind} {flags}");
        }
    }

    proptest! {
        #[test]
        fn the_size_of_the_pieces_does_not_matter(
            frames in prop::collection::vec((0u8..12, any::<u8>(), 0u32..99, 0usize..70), 0..20),
            size in 1usize..40,
            preface in any::<bool>(),
        ) {
            let start = if preface { vec![0; PREFACE] } else { vec![] };
            let reader = if preface { Frames::of_client } else { Frames::of_server };
            let bodies = frames.iter().map(|&(kind, flags, stream, length)| {
                frame(kind, flags, stream, length)
            });
            let bytes = [start, bodies.flatten().collect()].concat();
            let expected: Vec<_> = frames
                .iter()
                .map(|&(kind, flags, stream, _)| Frame::new(kind, flags, stream))
                .collect();
            prop_assert_eq!(&told(reader(), &[&bytes]), &expected);
            prop_assert_eq!(&told(reader(), &bytes.chunks(size).collect::<Vec<_>>()), &expected);
        }
    }
}
