
¨
orders.protoorders"3
Order

id (
item (	
quantity (""
Query

id (
count (2®
OrderService&
Create.orders.Order.orders.Order#
Get.orders.Query.orders.Order'
Watch.orders.Query.orders.Order0(
Import.orders.Order.orders.Query(bproto3