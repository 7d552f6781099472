/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RTE_VHOST_USER_CLIENT
#error "rte_eth_vhost.h did not include rte_vhost.h"
#endif
