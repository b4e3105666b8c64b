//! What becomes of each frame.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::act::Fate;
use super::stream::{Item, Stream};
use super::{MOST_ANNOUNCED, MOST_STREAMS, Mark, Next, Session, Way, ends, renumber};
use crate::codec::hpack::Field;
use crate::codec::{self, HEAD, Head, Malformed, flag, kind, setting};

impl Session<'_> {
    /// Judges the frame at the front.
    pub(super) fn frame(&mut self, way: Way, bytes: &mut [u8]) -> Result<Next, Malformed> {
        let Some(head) = Head::parse(bytes) else {
            return Ok(Next::More);
        };
        let side = self.side_mut(way);
        head.check(side.max_frame)?;
        if !side.started && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(Malformed("the first frame is not SETTINGS"));
        }
        if head.stream == 0 || !matches!(head.kind, kind::DATA | kind::HEADERS | kind::PUSH_PROMISE)
        {
            // The rest is judged whole; none of it is large.
            let small = head.kind != kind::GOAWAY && head.kind <= kind::CONTINUATION;
            let wanted = if small {
                head.whole()
            } else {
                head.whole().min(HEAD + 8)
            };
            if bytes.len() < wanted {
                return Ok(Next::More);
            }
        }
        match head.kind {
            kind::DATA => self.data(way, head, bytes),
            kind::HEADERS => self.headers(way, head, bytes),
            kind::PUSH_PROMISE => self.promise(way, head, bytes),
            kind::CONTINUATION => Err(Malformed("a CONTINUATION continues nothing")),
            kind::SETTINGS => {
                self.settings(way, head, &bytes[HEAD..head.whole()]);
                Ok(Next::Pass(head.whole()))
            }
            kind::RST_STREAM => Ok(self.rst_stream(way, head, bytes)),
            kind::WINDOW_UPDATE => Ok(self.window_update(way, head, bytes)),
            kind::PRIORITY => Ok(self.priority(way, head, bytes)),
            kind::GOAWAY if way == Way::Down => Ok(self.goaway(head, bytes)),
            _ if head.stream == 0 => Ok(Next::Pass(head.whole())),
            // A frame type of an extension.
            _ => Ok(match self.lookup(way, head.stream) {
                Some((_, stream)) if stream.ours || stream.server_id == 0 => {
                    Next::Replace(head.whole())
                }
                Some((own, _)) => self.pass_as(way, own, head, bytes),
                None => Next::Pass(head.whole()),
            }),
        }
    }

    /// Lets a frame go on under the number that its receiver knows.
    fn pass_as(&mut self, way: Way, own: u32, head: Head, bytes: &mut [u8]) -> Next {
        let id = self.number(way, own);
        if id != head.stream {
            bytes[5..HEAD].copy_from_slice(&id.to_be_bytes());
        }
        Next::Pass(head.whole())
    }

    fn data(&mut self, way: Way, head: Head, bytes: &mut [u8]) -> Result<Next, Malformed> {
        let end = ends(head);
        let Some((own, stream)) = self.lookup(way, head.stream) else {
            return Ok(match self.overdrawn(way, head) {
                true => Next::More,
                false => Next::Pass(head.whole()),
            });
        };
        if stream.ours {
            // Never seen by the receiver, and given back at once.
            if way == Way::Down {
                self.window -= head.len as i64;
            }
            self.credit(way, head.len);
            if end {
                self.done(way, own);
            }
            return Ok(Next::Replace(head.whole()));
        }
        let is_plain = stream.special.is_none();
        if !is_plain && bytes.len() < head.whole() {
            return Ok(Next::More);
        }
        if self.overdrawn(way, head) {
            return self.split_data(own, head, bytes);
        }
        if is_plain {
            let next = self.pass_as(way, own, head, bytes);
            if end {
                self.done(way, own);
            }
            return Ok(next);
        }
        let Some(payload) = bytes.get(HEAD..head.whole()) else {
            return Ok(Next::More);
        };
        let range = codec::content(head, payload)?;
        let content = Bytes::copy_from_slice(&payload[range]);
        // Padding is not sent on, but was taken out of the sender's windows.
        let padding = head.len - content.len();
        self.credit(way, padding);
        if padding > 0 && !end {
            let back = self.number(way.back(), own);
            codec::put_window_update(&mut self.side_mut(way.back()).late, back, padding);
        }
        self.receive(way, own, Item::Data { content, end });
        Ok(Next::Replace(head.whole()))
    }

    /// Takes DATA out of the client's window. Says if it must wait, because a rule's own is not paid back yet and it would overdraw the
    /// window. What is held counts from here on: the server may say no more than the window, whenever it goes on.
    fn overdrawn(&mut self, way: Way, head: Head) -> bool {
        let len = head.len as i64;
        if way == Way::Up {
            return false;
        }
        self.stalled = self.debt > 0 && len > self.window;
        if !self.stalled {
            self.window -= len;
        }
        self.stalled
    }

    /// Sends of a frame that would overdraw the window what fits: a client may wait for its window to run low before it credits
    /// anything. The rest stays, under a head of its own.
    fn split_data(&mut self, own: u32, head: Head, bytes: &mut [u8]) -> Result<Next, Malformed> {
        let fits = usize::try_from(self.window).unwrap_or(0);
        if fits == 0 {
            return Ok(Next::More);
        }
        // What is needed of it must still come.
        self.stalled = false;
        if head.has(flag::PADDED) {
            return self.unpad(own, head, bytes);
        }
        if bytes.len() < HEAD + fits {
            return Ok(Next::More);
        }
        self.window -= fits as i64;
        let content = Bytes::copy_from_slice(&bytes[HEAD..HEAD + fits]);
        if self.special(own).is_some() {
            let end = false;
            self.receive(Way::Down, own, Item::Data { content, end });
        } else {
            let late = &mut self.side_mut(Way::Down).late;
            codec::put_data(late, own, &content, false);
        }
        let mut rest = BytesMut::with_capacity(HEAD);
        let len = head.len - fits;
        Head { len, ..head }.put(&mut rest);
        bytes[fits..fits + HEAD].copy_from_slice(&rest);
        Ok(Next::Replace(fits))
    }

    /// Takes the padding out of DATA that overdraws the window: a frame with padding cannot be split, because where it lies is said in front
    /// and it lies behind. The server gets it credited here, since the client will never see it. The frame is judged anew.
    fn unpad(&mut self, own: u32, head: Head, bytes: &mut [u8]) -> Result<Next, Malformed> {
        let Some(payload) = bytes.get(HEAD..head.whole()) else {
            return Ok(Next::More);
        };
        let content = codec::content(head, payload)?;
        let padding = head.len - content.len();
        let back = self.number(Way::Up, own);
        let late = &mut self.side_mut(Way::Up).late;
        codec::put_window_update(late, 0, padding);
        if !ends(head) {
            codec::put_window_update(late, back, padding);
        }
        let len = content.len();
        let from = HEAD + content.start;
        bytes.copy_within(from..from + len, HEAD + padding);
        let mut front = BytesMut::with_capacity(HEAD);
        let flags = head.flags & !flag::PADDED;
        Head { len, flags, ..head }.put(&mut front);
        bytes[padding..padding + HEAD].copy_from_slice(&front);
        Ok(Next::Replace(padding))
    }

    fn headers(&mut self, way: Way, head: Head, bytes: &mut [u8]) -> Result<Next, Malformed> {
        let side = self.side_mut(way);
        let (max_frame, recode) = (side.max_frame, side.recode);
        let Some(block) = codec::block(bytes, max_frame)? else {
            return Ok(Next::More);
        };
        let is_new = way == Way::Up && head.stream > self.last_client;
        if way == Way::Up && head.stream.is_multiple_of(2) {
            return Err(Malformed("a client opens a stream with an even number"));
        }
        let known = self
            .lookup(way, head.stream)
            .map(|(own, s)| (own, s.ours, s.special.is_some()));
        // Asked once: a rule that is armed meanwhile begins with the next request.
        let judged = is_new && self.armed();
        let read = recode || judged || known.is_some_and(|(.., special)| special);
        let mut fields = vec![];
        let (whole, priority, end) = (block.whole, block.priority, ends(head));
        self.side_mut(way)
            .hpack
            .decode(&block.fragment, read.then_some(&mut fields))?;
        if is_new {
            return self.request(head, whole, fields, priority, judged);
        }
        match known {
            Some((own, true, _)) => {
                // The receiver's table is behind from here on.
                self.withhold(way);
                if end {
                    self.done(way, own);
                }
                Ok(Next::Replace(whole))
            }
            Some((own, false, true)) => {
                let waits = self.streams.get(&own).is_some_and(|s| s.waits(way));
                let touched = way == Way::Down && self.answers(own, &fields);
                if recode || waits || touched {
                    if waits || touched {
                        self.withhold(way);
                    }
                    self.receive(
                        way,
                        own,
                        Item::Block {
                            fields,
                            priority,
                            end,
                        },
                    );
                    return Ok(Next::Replace(whole));
                }
                if way == Way::Down && is_final(&fields) {
                    self.replied(own);
                }
                Ok(self.pass_block(way, own, whole, end, bytes))
            }
            Some((own, false, false)) => {
                if recode {
                    self.put_fields(way, own, &fields, end, priority);
                    self.after_block(way, own, end);
                    return Ok(Next::Replace(whole));
                }
                if way == Way::Down {
                    self.replied(own);
                }
                Ok(self.pass_block(way, own, whole, end, bytes))
            }
            // Of a stream that is closed, or was never opened by this client.
            None if recode => {
                let fragment = self.encode(way, &fields);
                let late = &mut self.side_mut(way).late;
                codec::put_block(late, head.stream, end, priority, None, &fragment);
                Ok(Next::Replace(whole))
            }
            None => Ok(Next::Pass(whole)),
        }
    }

    /// A block goes on as it is.
    fn pass_block(
        &mut self,
        way: Way,
        own: u32,
        whole: usize,
        end: bool,
        bytes: &mut [u8],
    ) -> Next {
        let id = self.number(way, own);
        if Head::parse(bytes).is_some_and(|h| h.stream != id) {
            renumber(&mut bytes[..whole], id);
        }
        if end {
            self.done(way, own);
        }
        Next::Pass(whole)
    }

    /// A block has been written anew.
    fn after_block(&mut self, way: Way, own: u32, end: bool) {
        if way == Way::Down {
            self.replied(own);
        }
        if end {
            self.done(way, own);
        }
    }

    /// The first header block of a stream that the client opens.
    fn request(
        &mut self,
        head: Head,
        whole: usize,
        fields: Vec<Field>,
        priority: Option<[u8; 5]>,
        judged: bool,
    ) -> Result<Next, Malformed> {
        let own = head.stream;
        self.last_client = own;
        if self.streams.len() >= MOST_STREAMS + super::MOST_ENDED {
            return Err(Malformed("more than 65536 streams are open at once"));
        }
        self.streams.insert(own, Stream::default());
        let end = ends(head);
        let fate = if judged {
            self.judge(own, &fields, end)
        } else {
            Fate::Pass
        };
        match fate {
            Fate::Pass => {}
            Fate::Answered => {
                self.withhold(Way::Up);
                return Ok(Next::Replace(whole));
            }
            Fate::Held => {
                // It may be overtaken, so that the order of blocks changes.
                self.withhold(Way::Up);
                let block = Item::Block {
                    fields,
                    priority,
                    end,
                };
                self.receive(Way::Up, own, block);
                return Ok(Next::Replace(whole));
            }
        }
        let id = self.open(own);
        self.marks.push(Mark {
            stream: own,
            since: self.read,
            injected: Duration::ZERO,
            reply: None,
        });
        if self.side(Way::Up).recode || id != own {
            self.withhold(Way::Up);
            self.put_fields(Way::Up, own, &fields, end, priority);
            if end {
                self.done(Way::Up, own);
            }
            return Ok(Next::Replace(whole));
        }
        if end {
            self.done(Way::Up, own);
        }
        Ok(Next::Pass(whole))
    }

    /// The server announces a stream of its own: no rule looks at it, but its header block is one of this direction's.
    fn promise(&mut self, way: Way, head: Head, bytes: &mut [u8]) -> Result<Next, Malformed> {
        if way == Way::Up {
            return Err(Malformed("a client sends PUSH_PROMISE"));
        }
        let side = self.side_mut(way);
        let (max_frame, recode) = (side.max_frame, side.recode);
        let Some(block) = codec::block(bytes, max_frame)? else {
            return Ok(Next::More);
        };
        let mut fields = vec![];
        let (whole, promised) = (block.whole, block.promised);
        let own = self.lookup(way, head.stream).map(|(own, s)| (own, s.ours));
        let read = recode.then_some(&mut fields);
        self.side_mut(way).hpack.decode(&block.fragment, read)?;
        match own {
            Some((_, true)) => {
                // The client has nobody to ask for it any more; the server is told that it is not wanted.
                self.withhold(way);
                codec::put_rst_stream(
                    &mut self.side_mut(Way::Up).late,
                    promised,
                    codec::code::CANCEL,
                );
                Ok(Next::Replace(whole))
            }
            own if recode => {
                let on = own.map_or(head.stream, |(own, _)| own);
                let fragment = self.encode(way, &fields);
                let late = &mut self.side_mut(way).late;
                codec::put_block(late, on, false, None, Some(promised), &fragment);
                Ok(Next::Replace(whole))
            }
            Some((own, _)) => Ok(self.pass_block(way, own, whole, false, bytes)),
            None => Ok(Next::Pass(whole)),
        }
    }

    fn settings(&mut self, way: Way, head: Head, payload: &[u8]) {
        self.side_mut(way).started = true;
        if head.has(flag::ACK) {
            if way == Way::Down
                && let Some(Some(window)) = self.announced.pop_front()
            {
                self.initial_window = window;
            }
            return;
        }
        let mut window = None;
        for (name, value) in codec::settings(payload) {
            match name {
                setting::MAX_FRAME_SIZE => {
                    let sender = self.side_mut(way.back());
                    sender.max_frame = sender.max_frame.max(value.min(0x00ff_ffff) as usize);
                }
                setting::INITIAL_WINDOW_SIZE => window = Some(value.into()),
                _ => {}
            }
        }
        if way == Way::Up && self.announced.len() < MOST_ANNOUNCED {
            self.announced.push_back(window);
        }
    }

    fn rst_stream(&mut self, way: Way, head: Head, bytes: &mut [u8]) -> Next {
        let code = word(bytes);
        let Some((own, stream)) = self.lookup(way, head.stream) else {
            return Next::Pass(head.whole());
        };
        if stream.ours {
            stream.done = [true; 2];
            self.bodies.retain(|b| b.stream != own);
            return Next::Replace(head.whole());
        }
        if stream.special.is_some() {
            self.receive(way, own, Item::Reset(code));
            return Next::Replace(head.whole());
        }
        let next = self.pass_as(way, own, head, bytes);
        self.note_unanswered(own);
        self.forget(own);
        next
    }

    fn window_update(&mut self, way: Way, head: Head, bytes: &mut [u8]) -> Next {
        let more = (word(bytes) & 0x7fff_ffff) as usize;
        if head.stream == 0 {
            if way == Way::Down {
                return Next::Pass(head.whole());
            }
            self.window += more as i64;
            let owed = self.debt.min(more);
            if owed == 0 {
                return Next::Pass(head.whole());
            }
            self.debt -= owed;
            codec::put_window_update(&mut self.side_mut(Way::Up).late, 0, more - owed);
            return Next::Replace(head.whole());
        }
        let Some((own, stream)) = self.lookup(way, head.stream) else {
            return Next::Pass(head.whole());
        };
        if way == Way::Up {
            stream.credit += more as i64;
        }
        if stream.ours {
            return Next::Replace(head.whole());
        }
        if stream.server_id == 0 {
            self.receive(way, own, Item::Window(more as u32));
            return Next::Replace(head.whole());
        }
        self.pass_as(way, own, head, bytes)
    }

    fn priority(&mut self, way: Way, head: Head, bytes: &mut [u8]) -> Next {
        if way == Way::Down || self.translated.is_empty() {
            return Next::Pass(head.whole());
        }
        let Some(id) = self
            .streams
            .get(&head.stream)
            .map(|s| s.server_id)
            .filter(|id| *id != 0)
        else {
            // Of an idle stream, whose number at the server is not known yet.
            return Next::Replace(head.whole());
        };
        if let Some(payload) = bytes[HEAD..].first_chunk_mut::<5>() {
            *payload = self.translate_priority(*payload, id);
        }
        bytes[5..HEAD].copy_from_slice(&id.to_be_bytes());
        Next::Pass(head.whole())
    }

    /// The server names the last stream that it has looked at, by its own numbers.
    fn goaway(&mut self, head: Head, bytes: &mut [u8]) -> Next {
        let last = word(bytes) & 0x7fff_ffff;
        let seen = |s: &Stream| s.server_id != 0 && s.server_id <= last;
        let held: Vec<u32> = self
            .streams
            .iter()
            .filter(|(_, s)| !s.ours && s.server_id == 0)
            .map(|(own, _)| *own)
            .collect();
        if (self.translated.is_empty() && held.is_empty()) || last >= self.last_client {
            return Next::Pass(head.whole());
        }
        // The largest number of the client's that is not past it. Streams below it that the server has not looked at are refused one
        // by one: the client may send them elsewhere, as it may those above.
        let named = self
            .streams
            .iter()
            .filter(|(_, s)| seen(s))
            .map(|(own, _)| *own)
            .max()
            .map_or(last, |own| own.max(last));
        let refused: Vec<u32> = self
            .streams
            .iter()
            .filter(|(own, s)| !s.ours && !seen(s) && **own <= named)
            .map(|(own, _)| *own)
            .chain(held)
            .collect();
        for own in refused {
            if self.streams.get(&own).is_some_and(|s| !s.ours) {
                self.refuse(own);
            }
        }
        bytes[HEAD..HEAD + 4].copy_from_slice(&named.to_be_bytes());
        Next::Pass(head.whole())
    }

    /// Tells the client that the server has not looked at a stream.
    fn refuse(&mut self, own: u32) {
        codec::put_rst_stream(
            &mut self.side_mut(Way::Down).late,
            own,
            codec::code::REFUSED_STREAM,
        );
        self.discard(own);
    }

    /// A reply has begun: what the request has cost so far is complete with it.
    pub(super) fn replied(&mut self, own: u32) {
        if let Some(stream) = self.streams.get_mut(&own)
            && !stream.replied
        {
            stream.replied = true;
            let reply = Some(stream.added);
            self.marks.push(Mark {
                stream: own,
                since: self.read,
                injected: Duration::ZERO,
                reply,
            });
        }
    }

    /// A stream that ends without a reply was a request all the same.
    pub(super) fn note_unanswered(&mut self, own: u32) {
        if let Some(stream) = self.streams.get_mut(&own)
            && !stream.replied
            && stream.server_id != 0
        {
            stream.replied = true;
            stream.added.record(&self.origin.host.meter);
        }
    }
}

/// The first four bytes of a payload.
fn word(bytes: &[u8]) -> u32 {
    bytes
        .get(HEAD..HEAD + 4)
        .map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

/// Are these the fields of a final response, not of an interim one (1xx), nor trailers?
pub(super) fn is_final(fields: &[Field]) -> bool {
    fields
        .first()
        .is_some_and(|f| f.name == ":status"[..] && !f.value.starts_with(b"1"))
}
