/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Packets are UDP over IPv4 in Ethernet with a payload that tells which packet it is. They go round and
 * round, so that a byte that was wrong once stays wrong, and one look at the end proves each copy.
 */
#include "loopback.h"

#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_udp.h>

struct headers {
	struct rte_ether_hdr ether;
	struct rte_ipv4_hdr ip;
	struct rte_udp_hdr udp;
} __attribute__((packed, aligned(2)));

static struct headers headers_for(unsigned int size)
{
	struct headers headers = { 0 };
	const struct rte_ether_addr to = { { 0x02, 4, 6, 8, 10, 12 } }, from = { { 0x02, 5, 7, 9, 11, 13 } };
	headers.ether.dst_addr = to;
	headers.ether.src_addr = from;
	headers.ether.ether_type = rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4);
	unsigned int ip_length = size - sizeof(headers.ether);
	headers.ip.version_ihl = RTE_IPV4_VHL_DEF;
	headers.ip.total_length = rte_cpu_to_be_16((uint16_t)ip_length);
	headers.ip.time_to_live = 64;
	headers.ip.next_proto_id = IPPROTO_UDP;
	headers.ip.src_addr = rte_cpu_to_be_32(RTE_IPV4(10, 0, 0, 1));
	headers.ip.dst_addr = rte_cpu_to_be_32(RTE_IPV4(10, 0, 0, 2));
	headers.ip.hdr_checksum = rte_ipv4_cksum(&headers.ip);
	headers.udp.src_port = rte_cpu_to_be_16(1000);
	headers.udp.dst_port = rte_cpu_to_be_16(2000);
	headers.udp.dgram_len = rte_cpu_to_be_16((uint16_t)(ip_length - sizeof(headers.ip)));
	/* What a sender leaves there for whoever computes the checksum. */
	headers.udp.dgram_cksum = rte_ipv4_phdr_cksum(&headers.ip, 0);
	return headers;
}

/* Byte `at` of packet `id`, after the headers. */
static uint8_t pattern(unsigned int id, unsigned int at)
{
	unsigned int from = sizeof(struct headers);
	if (at < from + 2)
		return (uint8_t)(id >> (8 * (at - from)));
	return (uint8_t)(id * 31 + at * 7);
}

struct rte_mbuf *make_packet(struct rte_mempool *pool, unsigned int size, unsigned int id)
{
	struct headers headers = headers_for(size);
	struct rte_mbuf *packet = rte_pktmbuf_alloc(pool);
	if (packet == NULL)
		die("the pool is empty");
	struct rte_mbuf *last = packet;
	for (unsigned int at = 0; at < size; at++) {
		if (rte_pktmbuf_tailroom(last) == 0) {
			struct rte_mbuf *more = rte_pktmbuf_alloc(pool);
			if (more == NULL)
				die("the pool is empty");
			last->next = more;
			last = more;
			packet->nb_segs++;
		}
		uint8_t byte = at < sizeof(headers) ? ((const uint8_t *)&headers)[at] : pattern(id, at);
		rte_pktmbuf_mtod(last, uint8_t *)[last->data_len++] = byte;
		packet->pkt_len++;
	}
	return packet;
}

/* The tag that all packets of the guest have when the port strips and inserts them. */
#define TAG 5

/* Bytes of a packet of this cell without its tag. */
static unsigned int untagged(const struct bench *bench, const struct cell *cell)
{
	return cell->size - (bench->options.checksum == VLAN ? sizeof(struct rte_vlan_hdr) : 0);
}

static void tag_packet(struct rte_mbuf **packet)
{
	(*packet)->vlan_tci = TAG;
	if (rte_vlan_insert(packet) != 0)
		die("no room for a tag");
}

void ask_for_tag(struct rte_mbuf *packet)
{
	packet->ol_flags = RTE_MBUF_F_TX_VLAN;
	packet->vlan_tci = TAG;
}

void make_packets(const struct bench *bench, const struct cell *cell, struct packets *packets)
{
	for (unsigned int queue = 0; queue < bench->options.queues; queue++)
		for (unsigned int i = 0; i < cell->burst; i++) {
			struct rte_mbuf *packet =
				make_packet(bench->guest_pool, untagged(bench, cell), queue * MAX_BURST + i);
			if (bench->options.checksum == VLAN)
				tag_packet(&packet);
			if (bench->options.checksum >= PASSED)
				ask_for_checksum(packet);
			packets->of[queue][i] = packet;
		}
}

void free_packets(const struct bench *bench, const struct cell *cell, struct packets *packets)
{
	for (unsigned int queue = 0; queue < bench->options.queues; queue++)
		for (unsigned int i = 0; i < cell->burst; i++)
			rte_pktmbuf_free(packets->of[queue][i]);
}

unsigned int packet_id(const struct rte_mbuf *packet)
{
	const uint8_t *data = rte_pktmbuf_mtod_offset(packet, const uint8_t *, sizeof(struct headers));
	return data[0] | data[1] << 8;
}

void check_payload(const struct rte_mbuf *packet, unsigned int size, unsigned int id)
{
	struct headers headers = headers_for(size);
	unsigned int at = 0;
	if (packet->pkt_len != size)
		die("packet %u has %u bytes instead of %u", id, packet->pkt_len, size);
	for (const struct rte_mbuf *segment = packet; segment != NULL; segment = segment->next) {
		const uint8_t *data = rte_pktmbuf_mtod(segment, const uint8_t *);
		for (unsigned int i = 0; i < segment->data_len; i++, at++) {
			uint8_t want = at < sizeof(headers) ? ((const uint8_t *)&headers)[at] : pattern(id, at);
			if (data[i] != want)
				die("byte %u of packet %u (%u bytes) is %02x instead of %02x", at, id, size,
				    data[i], want);
		}
	}
	if (at != size)
		die("the segments of packet %u have %u bytes instead of %u", id, at, size);
}

static void check_packet(const struct bench *bench, const struct cell *cell, struct rte_mbuf *packet,
			 unsigned int id)
{
	bool tagged = bench->options.checksum == VLAN;
	if (tagged && (rte_vlan_strip(packet) != 0 || packet->vlan_tci != TAG))
		die("packet %u has no tag, or another one", id);
	check_payload(packet, untagged(bench, cell), id);
	if (tagged)
		tag_packet(&packet);
}

void check_packets(const struct bench *bench, const struct cell *cell, const struct packets *packets)
{
	for (unsigned int queue = 0; queue < bench->options.queues; queue++)
		for (unsigned int i = 0; i < cell->burst; i++)
			check_packet(bench, cell, packets->of[queue][i], queue * MAX_BURST + i);
}

/* Reads and writes one byte of each cache line, as an application that uses the packet would. */
void touch_packet(struct rte_mbuf *packet)
{
	for (struct rte_mbuf *segment = packet; segment != NULL; segment = segment->next) {
		volatile uint8_t *data = rte_pktmbuf_mtod(segment, volatile uint8_t *);
		for (unsigned int at = 0; at < segment->data_len; at += RTE_CACHE_LINE_SIZE)
			data[at] = data[at];
		if (segment->data_len != 0)
			data[segment->data_len - 1] = data[segment->data_len - 1];
	}
}

void ask_for_checksum(struct rte_mbuf *packet)
{
	packet->ol_flags = RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_UDP_CKSUM;
	packet->l2_len = sizeof(struct rte_ether_hdr);
	packet->l3_len = sizeof(struct rte_ipv4_hdr);
	struct headers *headers = rte_pktmbuf_mtod(packet, struct headers *);
	headers->udp.dgram_cksum = rte_ipv4_phdr_cksum(&headers->ip, 0);
}

void check_received(enum checksum checksum, const struct rte_mbuf *packet, unsigned int size)
{
	if (checksum == VLAN) {
		size -= sizeof(struct rte_vlan_hdr);
		if ((packet->ol_flags & RTE_MBUF_F_RX_VLAN_STRIPPED) == 0 || packet->vlan_tci != TAG)
			die("the port did not strip the tag");
	}
	if (packet->pkt_len != size)
		die("the port received %u bytes instead of %u", packet->pkt_len, size);
	uint64_t marks = packet->ol_flags & RTE_MBUF_F_RX_L4_CKSUM_MASK;
	const struct headers *headers = rte_pktmbuf_mtod(packet, const struct headers *);
	if (checksum == PASSED && marks != RTE_MBUF_F_RX_L4_CKSUM_NONE)
		die("the port did not pass the request for a checksum on: ol_flags %" PRIx64, packet->ol_flags);
	if (checksum != SOFTWARE || packet->nb_segs != 1)
		return;
	uint32_t sum = rte_ipv4_phdr_cksum(&headers->ip, 0);
	sum += rte_raw_cksum(&headers->udp, size - sizeof(headers->ether) - sizeof(headers->ip));
	if ((sum & 0xffff) + (sum >> 16) != 0xffff)
		die("the port did not compute the checksum");
}
