//! What the bytes mean: the virtio-net header and its offloads (VIRTIO 1.2, 5.1).
