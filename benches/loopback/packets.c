/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Packets are UDP over IP in Ethernet with a payload that tells which packet it is. They go round and
 * round, so that a byte that was wrong once stays wrong, and one look at the end proves each copy.
 */
#include "loopback.h"

#include <string.h>

#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_udp.h>

struct headers {
	struct rte_ether_hdr ether;
	union {
		struct {
			struct rte_ipv4_hdr ip;
			struct rte_udp_hdr udp;
		} __attribute__((packed, aligned(2))) v4;
		struct {
			struct rte_ipv6_hdr ip;
			struct rte_udp_hdr udp;
		} __attribute__((packed, aligned(2))) v6;
	};
} __attribute__((packed, aligned(2)));

static unsigned int headers_size(enum checksum checksum)
{
	const struct headers *headers = NULL;
	return sizeof(headers->ether) + (checksum == IPV6 ? sizeof(headers->v6) : sizeof(headers->v4));
}

/* The checksum of UDP is what a sender leaves there for whoever computes it. */
static void fill_v4(struct headers *headers, unsigned int ip_length)
{
	struct rte_ipv4_hdr *ip = &headers->v4.ip;
	headers->ether.ether_type = rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4);
	ip->version_ihl = RTE_IPV4_VHL_DEF;
	ip->total_length = rte_cpu_to_be_16((uint16_t)ip_length);
	ip->time_to_live = 64;
	ip->next_proto_id = IPPROTO_UDP;
	ip->src_addr = rte_cpu_to_be_32(RTE_IPV4(10, 0, 0, 1));
	ip->dst_addr = rte_cpu_to_be_32(RTE_IPV4(10, 0, 0, 2));
	ip->hdr_checksum = rte_ipv4_cksum(ip);
	headers->v4.udp.src_port = rte_cpu_to_be_16(1000);
	headers->v4.udp.dst_port = rte_cpu_to_be_16(2000);
	headers->v4.udp.dgram_len = rte_cpu_to_be_16((uint16_t)(ip_length - sizeof(*ip)));
	headers->v4.udp.dgram_cksum = rte_ipv4_phdr_cksum(ip, 0);
}

static void fill_v6(struct headers *headers, unsigned int ip_length)
{
	struct rte_ipv6_hdr *ip = &headers->v6.ip;
	uint16_t length = (uint16_t)(ip_length - sizeof(*ip));
	headers->ether.ether_type = rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV6);
	ip->vtc_flow = rte_cpu_to_be_32(6u << 28);
	ip->payload_len = rte_cpu_to_be_16(length);
	ip->proto = IPPROTO_UDP;
	ip->hop_limits = 64;
	memset(&ip->src_addr, 0x51, sizeof(ip->src_addr));
	memset(&ip->dst_addr, 0x62, sizeof(ip->dst_addr));
	headers->v6.udp.src_port = rte_cpu_to_be_16(1000);
	headers->v6.udp.dst_port = rte_cpu_to_be_16(2000);
	headers->v6.udp.dgram_len = rte_cpu_to_be_16(length);
	headers->v6.udp.dgram_cksum = rte_ipv6_phdr_cksum(ip, 0);
}

static struct headers headers_for(enum checksum checksum, unsigned int size)
{
	struct headers headers = { 0 };
	const struct rte_ether_addr to = { { 0x02, 4, 6, 8, 10, 12 } }, from = { { 0x02, 5, 7, 9, 11, 13 } };
	headers.ether.dst_addr = to;
	headers.ether.src_addr = from;
	if (checksum == IPV6)
		fill_v6(&headers, size - sizeof(headers.ether));
	else
		fill_v4(&headers, size - sizeof(headers.ether));
	return headers;
}

/* Byte `at` of packet `id`, after the headers, which end at `from`. */
static uint8_t pattern(unsigned int id, unsigned int from, unsigned int at)
{
	if (at < from + 2)
		return (uint8_t)(id >> (8 * (at - from)));
	return (uint8_t)(id * 31 + at * 7);
}

struct rte_mbuf *make_packet(enum checksum checksum, struct rte_mempool *pool, unsigned int size,
			     unsigned int id)
{
	struct headers headers = headers_for(checksum, size);
	unsigned int from = headers_size(checksum);
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
		uint8_t byte = at < from ? ((const uint8_t *)&headers)[at] : pattern(id, from, at);
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

void make_packets(const struct bench *bench, const struct cell *cell, struct packets *packets)
{
	for (unsigned int queue = 0; queue < bench->options.queues; queue++)
		for (unsigned int i = 0; i < cell->burst; i++) {
			struct rte_mbuf *packet =
				make_packet(bench->options.checksum, bench->guest_pool, untagged(bench, cell),
					    queue * MAX_BURST + i);
			if (bench->options.checksum == VLAN)
				tag_packet(&packet);
			guest_asks(bench->options.checksum, packet);
			packets->of[queue][i] = packet;
		}
}

void free_packets(const struct bench *bench, const struct cell *cell, struct packets *packets)
{
	for (unsigned int queue = 0; queue < bench->options.queues; queue++)
		for (unsigned int i = 0; i < cell->burst; i++)
			rte_pktmbuf_free(packets->of[queue][i]);
}

unsigned int packet_id(enum checksum checksum, const struct rte_mbuf *packet)
{
	const uint8_t *data = rte_pktmbuf_mtod_offset(packet, const uint8_t *, headers_size(checksum));
	return data[0] | data[1] << 8;
}

/* Whether the checksum of UDP over IPv4 is right. */
static bool is_summed(const struct headers *headers, unsigned int size)
{
	uint32_t sum = rte_ipv4_phdr_cksum(&headers->v4.ip, 0);
	sum += rte_raw_cksum(&headers->v4.udp, size - sizeof(headers->ether) - sizeof(headers->v4.ip));
	return (sum & 0xffff) + (sum >> 16) == 0xffff;
}

void check_payload(enum checksum checksum, const struct rte_mbuf *packet, unsigned int size, unsigned int id)
{
	struct headers headers = headers_for(checksum, size);
	unsigned int at = 0, from = headers_size(checksum);
	if (checksum == UNSUMMED) {
		const struct headers *sent = rte_pktmbuf_mtod(packet, const struct headers *);
		if (!is_summed(sent, size))
			die("the checksum of packet %u is wrong", id);
		headers.v4.udp.dgram_cksum = sent->v4.udp.dgram_cksum;
	}
	if (packet->pkt_len != size)
		die("packet %u has %u bytes instead of %u", id, packet->pkt_len, size);
	for (const struct rte_mbuf *segment = packet; segment != NULL; segment = segment->next) {
		const uint8_t *data = rte_pktmbuf_mtod(segment, const uint8_t *);
		for (unsigned int i = 0; i < segment->data_len; i++, at++) {
			uint8_t want = at < from ? ((const uint8_t *)&headers)[at] : pattern(id, from, at);
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
	check_payload(bench->options.checksum, packet, untagged(bench, cell), id);
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

static void ask_for_checksum(enum checksum checksum, struct rte_mbuf *packet)
{
	struct headers *headers = rte_pktmbuf_mtod(packet, struct headers *);
	packet->l2_len = sizeof(struct rte_ether_hdr);
	if (checksum == IPV6) {
		packet->ol_flags = RTE_MBUF_F_TX_IPV6 | RTE_MBUF_F_TX_UDP_CKSUM;
		packet->l3_len = sizeof(struct rte_ipv6_hdr);
		headers->v6.udp.dgram_cksum = rte_ipv6_phdr_cksum(&headers->v6.ip, 0);
	} else {
		packet->ol_flags = RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_UDP_CKSUM;
		packet->l3_len = sizeof(struct rte_ipv4_hdr);
		headers->v4.udp.dgram_cksum = rte_ipv4_phdr_cksum(&headers->v4.ip, 0);
	}
}

/* Puts what is behind the headers into a segment of its own. */
static void divide(struct rte_mempool *pool, struct rte_mbuf *packet)
{
	unsigned int kept = headers_size(SEGMENTS), moved = packet->data_len - kept;
	struct rte_mbuf *second = rte_pktmbuf_alloc(pool);
	if (second == NULL)
		die("the pool is empty");
	memcpy(rte_pktmbuf_mtod(second, char *), rte_pktmbuf_mtod_offset(packet, char *, kept), moved);
	second->data_len = (uint16_t)moved;
	packet->data_len = (uint16_t)kept;
	packet->next = second;
	packet->nb_segs = 2;
}

void guest_asks(enum checksum checksum, struct rte_mbuf *packet)
{
	if (checksum >= PASSED && checksum != UNSUMMED)
		ask_for_checksum(checksum, packet);
}

void port_asks(const struct bench *bench, struct rte_mbuf *packet)
{
	enum checksum checksum = bench->options.checksum;
	if (checksum == VLAN) {
		packet->ol_flags = RTE_MBUF_F_TX_VLAN;
		packet->vlan_tci = TAG;
	}
	if (checksum < PASSED || checksum == MARKS)
		return;
	ask_for_checksum(checksum, packet);
	if (checksum == IP) {
		packet->ol_flags |= RTE_MBUF_F_TX_IP_CKSUM;
		rte_pktmbuf_mtod(packet, struct headers *)->v4.ip.hdr_checksum = 0;
	}
	if (checksum == SEGMENTS)
		divide(bench->vhost_pool, packet);
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
	bool passed = checksum >= PASSED && checksum != SOFTWARE && checksum != UNSUMMED;
	if (passed && marks != RTE_MBUF_F_RX_L4_CKSUM_NONE)
		die("the port did not pass the request for a checksum on: ol_flags %" PRIx64, packet->ol_flags);
	if (checksum == SOFTWARE && packet->nb_segs == 1 && !is_summed(headers, size))
		die("the port did not compute the checksum");
}
