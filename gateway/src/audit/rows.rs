//! The lines of a journal, one after the other across its segments.
//!
//! It reads ahead where the verifier asks what comes next, and judges nothing.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use super::segment;

/// The longest line that is read, in bytes; ours are below a thousandth of it.
const LONGEST: u64 = 1 << 20;

/// One line.
#[derive(Debug)]
pub struct Row {
    /// The number of its segment.
    pub segment: u64,
    /// Its number in the file, from 1.
    pub line: u64,
    /// Its bytes, without the line feed.
    pub bytes: Vec<u8>,
    /// Whether a line feed ended it.
    pub ended: bool,
}

/// The lines of these segments.
#[derive(Debug)]
pub struct Rows {
    folder: PathBuf,
    segments: VecDeque<u64>,
    reading: Option<(u64, u64, BufReader<File>)>,
    ahead: VecDeque<Row>,
}

impl Rows {
    /// Opens the first segment; the others are opened when their turn comes.
    pub fn open(folder: &Path, segments: &[u64]) -> io::Result<Self> {
        let mut rows = Self {
            folder: folder.to_owned(),
            segments: segments.iter().copied().collect(),
            reading: None,
            ahead: VecDeque::new(),
        };
        rows.turn()?;
        Ok(rows)
    }

    /// The next line.
    pub fn row(&mut self) -> io::Result<Option<Row>> {
        match self.ahead.pop_front() {
            Some(row) => Ok(Some(row)),
            None => self.read(),
        }
    }

    /// The line after that, which stays.
    pub fn peek(&mut self) -> io::Result<Option<&Row>> {
        if self.ahead.is_empty()
            && let Some(row) = self.read()?
        {
            self.ahead.push_back(row);
        }
        Ok(self.ahead.front())
    }

    /// The file being read.
    pub fn file(&self) -> PathBuf {
        let number = self.reading.as_ref().map_or(0, |(number, ..)| *number);
        segment::lines(&self.folder, number)
    }

    fn read(&mut self) -> io::Result<Option<Row>> {
        loop {
            let Some((segment, line, reader)) = &mut self.reading else {
                return Ok(None);
            };
            let mut bytes = Vec::with_capacity(640);
            io::Read::take(&mut *reader, LONGEST).read_until(b'\n', &mut bytes)?;
            if !bytes.is_empty() {
                *line += 1;
                let ended = bytes.pop_if(|last| *last == b'\n').is_some();
                return Ok(Some(Row {
                    segment: *segment,
                    line: *line,
                    bytes,
                    ended,
                }));
            }
            self.turn()?;
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        self.reading = match self.segments.pop_front() {
            Some(number) => {
                let file = File::open(segment::lines(&self.folder, number))?;
                Some((number, 0, BufReader::with_capacity(1 << 18, file)))
            }
            None => None,
        };
        Ok(())
    }
}
