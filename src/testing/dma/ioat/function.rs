//! The channel as a PCI function.
#![forbid(unsafe_code)]

use std::io;

use super::{CHANERR_INT, IoatFault, IoatModel};
use crate::dma::vfio::{Function, Registers};

macro_rules! registers_of_model {
    ($($read:ident $write:ident $type:ty),*) => {
        impl Registers for IoatModel {
            $(
                fn $read(&self, at: usize) -> $type {
                    self.state().read(at) as $type
                }

                fn $write(&self, at: usize, value: $type) {
                    self.state().write(at, value.into());
                }
            )*
        }
    };
}
registers_of_model!(read8 write8 u8, read16 write16 u16, read32 write32 u32, read64 write64 u64);

impl Function for IoatModel {
    fn config_read(&self, at: u16, into: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let at = usize::from(at);
        match state.removed {
            true => into.fill(0xff),
            false => into.copy_from_slice(&state.config[at..at + into.len()]),
        }
        Ok(())
    }

    fn config_write(&self, at: u16, from: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let at_byte = usize::from(at);
        if at == CHANERR_INT {
            for (nth, byte) in from.iter().enumerate() {
                state.config[at_byte + nth] &= !byte;
            }
        } else {
            state.config[at_byte..at_byte + from.len()].copy_from_slice(from);
        }
        Ok(())
    }

    fn reset(&mut self) -> bool {
        let mut state = self.state();
        if state.removed || state.is(IoatFault::NoFunctionReset) {
            return false;
        }
        state.resetting = 0;
        state.reset();
        true
    }

    fn release(&mut self) -> bool {
        let mut state = self.state();
        let done = !state.is(IoatFault::NoRelease);
        if done {
            state.chain = 0;
            state.resetting = 0;
            state.removed = true;
        }
        done
    }
}
