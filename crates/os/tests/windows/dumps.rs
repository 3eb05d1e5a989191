//! Crash dumps of a machine give the same memory and the same views as its raw image.

use crate::common::{KERNELS, anchors, make_with, rows};
use ramsift_layers::format::open as open_format;
use ramsift_layers::run::RunMap;
use ramsift_layers::source::RamSource;
use ramsift_layers::translate::{PhysError, PhysRead};
use ramsift_layers::{ImageOffset, PhysAddr};
use ramsift_os::discover::discover;
use ramsift_os::input::ViewInput;
use ramsift_os::{by_name, open};

/// Memory of a file, through its runs.
struct Dump {
    data: Vec<u8>,
    runs: RunMap,
}

impl PhysRead for Dump {
    fn read_phys(&self, pa: PhysAddr, buf: &mut [u8]) -> Result<(), PhysError> {
        let missing = || PhysError::NotInImage { pa };
        let mut done = 0;
        while done < buf.len() {
            let at = PhysAddr(pa.0 + done as u64);
            let image = self.runs.from_phys(at).ok_or_else(missing)?;
            let end = ImageOffset(image.0 + (buf.len() - done) as u64);
            let pieces = self.runs.pieces(image.0..end.0);
            let piece = pieces.first().ok_or_else(missing)?;
            let file = usize::try_from(piece.file).unwrap();
            // Neighbours in the image may lie apart in memory.
            let page = usize::try_from(4096 - at.0 % 4096).unwrap();
            let n = usize::try_from(piece.len)
                .unwrap()
                .min(buf.len() - done)
                .min(page);
            buf[done..done + n].copy_from_slice(&self.data[file..file + n]);
            done += n;
        }
        Ok(())
    }
}

#[tokio::test]
async fn full_and_bitmap_dumps_hold_what_the_raw_image_holds() {
    for (name, guid) in [KERNELS[0], KERNELS[6], KERNELS[8]] {
        let (made, files) = make_with(
            name,
            guid,
            21,
            &["--dmp", "--bmp", "--no-low-stub"],
            &["dmp", "bmp.dmp"],
        );
        let want: Vec<_> = [
            "windows/pslist",
            "windows/handles",
            "windows/psxview",
            "windows/netscan",
        ]
        .map(|v| (v, made.build(v)))
        .into_iter()
        .collect();
        for (ext, data) in ["dmp", "bmp.dmp"].iter().zip(files) {
            let at = format!("{name}.{ext}");
            let opened = open_format(&RamSource::new(&at, data.clone()))
                .await
                .unwrap();
            let l = opened.layout;
            assert_eq!(l.format, "crash_dump", "{at}");
            assert_eq!(l.dtb_hints, [made.truth["dtb"].as_u64().unwrap()], "{at}");
            assert_eq!(l.arch.as_deref(), Some("x86_64"), "{at}");
            assert_eq!(l.gaps, [], "{at}");
            let dump = Dump {
                data,
                runs: l.runs.clone(),
            };
            // Every page that the dump has is the machine's; what it lacks is zeros there, or a place that is no RAM.
            let (mut held, mut page, mut own) = (0, [0; 4096], [0; 4096]);
            for pa in (0..made.runs.image_len()).step_by(4096) {
                made.image.read_phys(PhysAddr(pa), &mut page).unwrap();
                match dump.read_phys(PhysAddr(pa), &mut own) {
                    Ok(()) => {
                        assert!(page == own, "{at}: page at {pa:#x}");
                        held += 1;
                    }
                    Err(_) => assert!(
                        page.iter().all(|b| *b == 0),
                        "{at}: page at {pa:#x} is lost"
                    ),
                }
            }
            assert!(held > 5000, "{at}: {held} pages");
            let anchors = anchors();
            let input = ViewInput {
                memory: &dump,
                runs: &l.runs,
                dtb_hints: &l.dtb_hints,
                ..made.input(&anchors)
            };
            let d = discover(&input);
            assert!(
                d.page_tables[0].source.contains("container"),
                "{at}: {}",
                d.page_tables[0].source
            );
            let machine = open(&input, &d).unwrap();
            for (view, want) in &want {
                let got = machine.build(by_name(view).unwrap()).unwrap();
                let columns: Vec<&str> = want.columns.iter().map(|c| c.name).collect();
                assert_eq!(rows(&got, &columns), rows(want, &columns), "{at} {view}");
            }
        }
    }
}
