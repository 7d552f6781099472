/* SPDX-License-Identifier: BSD-3-Clause */
/* Packet types: none by default; with ptypes=1 those of every frame. */
#include "lib/check.h"
#include "lib/eal.h"
#include "lib/frame.h"
#include "lib/guest.h"

#include <netinet/in.h>
#include <string.h>

#include <rte_ether.h>
#include <rte_ip.h>
#include <rte_mbuf_ptype.h>
#include <rte_net.h>

#define LENGTH 120

static struct guest guest;

/* A frame with these two bytes behind the addresses, and an IP header behind `l2_length`. */
struct shape {
	uint16_t ethertype, inner_type;
	uint32_t l2_length;
	uint8_t protocol;
	bool fragment;
	uint32_t type;
};

static const struct shape shapes[] = {
	{RTE_ETHER_TYPE_IPV4, 0, 14, IPPROTO_TCP, false,
	 RTE_PTYPE_L2_ETHER | RTE_PTYPE_L3_IPV4 | RTE_PTYPE_L4_TCP},
	{RTE_ETHER_TYPE_IPV4, 0, 14, IPPROTO_UDP, false,
	 RTE_PTYPE_L2_ETHER | RTE_PTYPE_L3_IPV4 | RTE_PTYPE_L4_UDP},
	{RTE_ETHER_TYPE_IPV4, 0, 14, IPPROTO_SCTP, false,
	 RTE_PTYPE_L2_ETHER | RTE_PTYPE_L3_IPV4 | RTE_PTYPE_L4_SCTP},
	{RTE_ETHER_TYPE_IPV4, 0, 14, IPPROTO_UDP, true,
	 RTE_PTYPE_L2_ETHER | RTE_PTYPE_L3_IPV4 | RTE_PTYPE_L4_FRAG},
	{RTE_ETHER_TYPE_VLAN, RTE_ETHER_TYPE_IPV4, 18, IPPROTO_TCP, false,
	 RTE_PTYPE_L2_ETHER_VLAN | RTE_PTYPE_L3_IPV4 | RTE_PTYPE_L4_TCP},
	{RTE_ETHER_TYPE_IPV6, 0, 14, IPPROTO_UDP, false,
	 RTE_PTYPE_L2_ETHER | RTE_PTYPE_L3_IPV6 | RTE_PTYPE_L4_UDP},
	/* A tunnel is not looked into. */
	{RTE_ETHER_TYPE_IPV4, 0, 14, IPPROTO_IPIP, false, RTE_PTYPE_L2_ETHER | RTE_PTYPE_L3_IPV4},
	{RTE_ETHER_TYPE_ARP, 0, 14, 0, false, RTE_PTYPE_L2_ETHER},
};

static struct rte_mbuf *
receive(const struct shape *shape)
{
	uint8_t bytes[HEADER + LENGTH] = {0};
	struct rte_ether_hdr *ether = (struct rte_ether_hdr *)(bytes + HEADER);
	uint8_t *ip = bytes + HEADER + shape->l2_length;
	struct used_entry entry;
	struct rte_mbuf *mbuf;

	memset(ether, 2, 2 * RTE_ETHER_ADDR_LEN);
	ether->ether_type = rte_cpu_to_be_16(shape->ethertype);
	if (shape->inner_type != 0) {
		ip[-2] = (uint8_t)(shape->inner_type >> 8);
		ip[-1] = (uint8_t)shape->inner_type;
	}
	if (shape->ethertype == RTE_ETHER_TYPE_IPV6) {
		ip[0] = 0x60;
		ip[6] = shape->protocol;
	} else if (shape->protocol != 0) {
		ip[0] = RTE_IPV4_VHL_DEF;
		ip[6] = shape->fragment ? 0x20 : 0;
		ip[9] = shape->protocol;
		ip[20] = RTE_IPV4_VHL_DEF; /* of a tunnel */
	}
	guest_write(&guest.frontend, DATA_GPA, bytes, sizeof(bytes));
	ring_describe(guest.to_host, 0, DATA_GPA, sizeof(bytes), 0, 0);
	ring_offer(guest.to_host, 0);
	mbuf = receive_one(guest.port, 0, 2000);
	CHECK(guest_take_used(guest.to_host, &entry, 1) == 1, "not given back");
	return mbuf;
}

static void
expect(const struct shape *shape, uint32_t type)
{
	struct rte_mbuf *mbuf = receive(shape);

	REQUIRE(mbuf != NULL, "lost");
	CHECK(mbuf->packet_type == type, "type %#x, expected %#x", mbuf->packet_type, type);
	rte_pktmbuf_free(mbuf);
}

static void
nothing_by_default(void)
{
	uint32_t types[32];

	REQUIRE(guest_open(&guest, &(struct guest_options){0}), "no guest");
	CHECK(rte_eth_dev_get_supported_ptypes(guest.port, RTE_PTYPE_ALL_MASK, types, 32) == 0,
	      "types are promised");
	for (unsigned int i = 0; i < RTE_DIM(shapes); i++)
		expect(&shapes[i], 0);
	if (!plugin_is_stock()) {
		/* A wish that the port does not take does no harm. */
		CHECK(rte_eth_dev_set_ptypes(guest.port, RTE_PTYPE_ALL_MASK, types, 32) == 0, "set");
		expect(&shapes[0], 0);
	}
	guest_close(&guest);
}

/* True when each layer of `type` is among the types that the port promises. */
static bool
is_promised(uint32_t type, const uint32_t *types, int count)
{
	const uint32_t layers[] = {RTE_PTYPE_L2_MASK, RTE_PTYPE_L3_MASK, RTE_PTYPE_L4_MASK};
	bool all = (type & ~(layers[0] | layers[1] | layers[2])) == 0;

	for (unsigned int i = 0; i < RTE_DIM(layers); i++) {
		bool found = (type & layers[i]) == 0;

		for (int n = 0; n < count; n++)
			found |= types[n] == (type & layers[i]);
		all &= found;
	}
	return all;
}

static void
every_frame(void)
{
	uint32_t types[32];
	int count;

	if (beyond_stock())
		return;
	REQUIRE(guest_open(&guest, &(struct guest_options){.devargs = ",ptypes=1"}), "no guest");
	count = rte_eth_dev_get_supported_ptypes(guest.port, RTE_PTYPE_ALL_MASK, types, 32);
	CHECK(count == 12, "%d types", count);
	for (unsigned int i = 0; i < RTE_DIM(shapes); i++) {
		expect(&shapes[i], shapes[i].type);
		CHECK(is_promised(shapes[i].type, types, count), "type %#x", shapes[i].type);
	}
	guest_close(&guest);
}

static void
only_what_is_wanted(void)
{
	static const uint32_t masks[] = {
		RTE_PTYPE_L2_MASK, RTE_PTYPE_L3_MASK, RTE_PTYPE_L4_MASK,
		RTE_PTYPE_L3_MASK | RTE_PTYPE_L4_MASK, 0, RTE_PTYPE_ALL_MASK,
	};

	if (beyond_stock())
		return;
	REQUIRE(guest_open(&guest, &(struct guest_options){.devargs = ",ptypes=1"}), "no guest");
	for (unsigned int n = 0; n < RTE_DIM(masks); n++) {
		CHECK(rte_eth_dev_set_ptypes(guest.port, masks[n], NULL, 0) == 0, "mask %#x", masks[n]);
		for (unsigned int i = 0; i < RTE_DIM(shapes); i++)
			expect(&shapes[i], shapes[i].type & masks[n]);
	}
	guest_close(&guest);
}

int
main(void)
{
	eal_start("ptypes");
	after_each_case(vdev_detach_all);
	run_case("by default no type is promised, and none is told", nothing_by_default, 10);
	run_case("with ptypes=1 every frame has its type", every_frame, 10);
	run_case("an application hears of the layers that it wants", only_what_is_wanted, 10);
	return eal_end();
}
